//! Paths in one form, so that a request is looked up as the provider will read it.
//!
//! Not here: the tables of endpoints (`endpoint`). What is forwarded stays as the client wrote it.

/// The path with every needlessly encoded character decoded (RFC 3986, 6.2.2.2). `None` when servers differ over
/// what it means: encoded delimiters, dot segments, backslashes, parameters, broken encodings.
pub(super) fn canonical(path: &str) -> Option<String> {
    let mut plain = String::with_capacity(path.len());
    let mut parts = path.split('%');
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        match hex(code)? {
            byte if is_unreserved(byte) => plain.push(char::from(byte)),
            b'/' | b'\\' | b';' | b'%' => return None,
            _ => plain.extend(["%", code]),
        }
        plain.push_str(rest);
    }
    let has_dots = plain.split('/').any(|segment| matches!(segment, "." | ".."));
    (!has_dots && !plain.contains(['\\', ';'])).then_some(plain)
}

fn hex(code: &str) -> Option<u8> {
    let digits = code.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(code, 16).ok()).flatten()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_need_not_be_encoded_is_decoded() {
        for (given, read) in [
            ("/v1/messages", "/v1/messages"),
            ("/v1/%6dessages", "/v1/messages"),
            ("/%76%31/%6D%65ssages", "/v1/messages"),
            ("/v1/models/a%20b%C3%a9", "/v1/models/a%20b%C3%a9"),
            ("/a..b/.well-known", "/a..b/.well-known"),
            ("", ""),
        ] {
            assert_eq!(canonical(given).as_deref(), Some(read), "{given}");
        }
    }

    #[test]
    fn what_servers_read_differently_has_no_form() {
        for path in [
            "/v1%2fmessages",
            "/v1%2Fmessages",
            "/v1%5cmessages",
            "/api/%2e%2e/v1/messages",
            "/api/.%2E/v1/messages",
            "/api/../v1/messages",
            "/./v1/messages",
            "/v1\\messages",
            "/v1/messages;a=b",
            "/v1/messages%3ba",
            "/v1/%256dessages",
            "/v1/%6",
            "/v1/%zz",
            "/v1/%+d",
            "/v1/%é",
        ] {
            assert_eq!(canonical(path), None, "{path}");
        }
    }
}
