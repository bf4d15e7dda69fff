//! Paths in one form, so that a request is looked up as the provider will read it.
//!
//! Not here: the tables of endpoints (`endpoint`). What is forwarded stays as the client wrote it.

/// The path with every needlessly encoded character decoded (RFC 3986, 6.2.2.2) and encoded slashes as `%2F`: whether
/// they delimit, servers differ over. `None` where they differ over more: dot segments, backslashes, parameters,
/// broken and double encodings.
pub(super) fn canonical(path: &str) -> Option<String> {
    let mut plain = String::with_capacity(path.len());
    let mut parts = path.split('%');
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (code, rest) = part.split_at_checked(2)?;
        match hex(code)? {
            byte if is_plain(byte) => plain.push(char::from(byte)),
            b'\\' | b';' | b'%' => return None,
            b'/' => plain.push_str(ENCODED_SLASH),
            _ => plain.extend(["%", code]),
        }
        plain.push_str(rest);
    }
    let has_dots = decoded(&plain).split('/').any(|segment| matches!(segment, "." | ".."));
    (!has_dots && !plain.contains(['\\', ';'])).then_some(plain)
}

/// The other reading of a canonical path: its encoded slashes delimit.
pub(super) fn decoded(canonical: &str) -> String {
    canonical.replace(ENCODED_SLASH, "/")
}

const ENCODED_SLASH: &str = "%2F";

/// The byte that two hexadecimal digits stand for, and nothing else does.
pub(crate) fn hex(code: &str) -> Option<u8> {
    let digits = code.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u8::from_str_radix(code, 16).ok()).flatten()
}

/// Unreserved, or a colon: it delimits nothing in a path, and Google's verbs stand behind one.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte)
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
            ("/v1beta/models/m%3AgenerateContent", "/v1beta/models/m:generateContent"),
            ("/model/arn%3aaws%2fm/invoke", "/model/arn:aws%2Fm/invoke"),
            ("", ""),
        ] {
            assert_eq!(canonical(given).as_deref(), Some(read), "{given}");
        }
    }

    #[test]
    fn an_encoded_slash_has_two_readings() {
        assert_eq!(decoded(&canonical("/v1%2fmessages").unwrap()), "/v1/messages");
    }

    #[test]
    fn what_servers_read_differently_has_no_form() {
        for path in [
            "/v1%5cmessages",
            "/v1%2f..%2fmessages",
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
