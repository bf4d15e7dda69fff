//! The table of endpoints of every dialect: which cost tokens, which are free, which cannot be metered.
use super::{Shape, path};
use crate::protocol::Dialect;

/// What a request to a metered host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Costs tokens; the answer has this shape.
    Billing(Shape),
    /// Costs none: login, telemetry, models, counting, stored answers.
    Free,
    /// In no row: passes, tailed as [`Shape::Any`], audited.
    Unlisted,
    /// Costs tokens that its answer does not report; the reason in words.
    Refused(&'static str),
    /// Servers differ over which path it is, so no table can tell.
    Ambiguous,
}

use Dialect::{Anthropic, Bedrock, Gemini, Openai, OpenaiChat};
use Endpoint::{Billing, Free, Refused, Unlisted};

const BATCH: &str = "a batch reports its usage hours later, where no budget can stop it";
const LATER: &str = "it reports its usage later, where no budget can stop it";
const BIDIRECTIONAL: &str = "a bidirectional stream is not metered";
const SEVERAL: &str = "several requests in one cannot be told apart";
const UNREAD: &str = "what it costs is not reported in a form that is read";
const ELSEWHERE: &str = "what is said in a realtime session does not pass here";
const BY_POST: &str = "only a POST asks for it; a server might take another method for one";

/// Dialects, methods, path, what it is. `*` stands for one segment or the beginning of one, `**` for any number of
/// segments, `a|b` for either.
type Row = (&'static [Dialect], &'static str, &'static str, Endpoint);

const ANTHROPIC: &[Dialect] = &[Anthropic];
const OPENAI: &[Dialect] = &[Openai];
/// Providers with endpoints in OpenAI's forms, and those of compatible servers below prefixes of their own.
const COMPATIBLE: &[Dialect] = &[Openai, OpenaiChat, Gemini, Bedrock];
const GEMINI: &[Dialect] = &[Gemini];
const BEDROCK: &[Dialect] = &[Bedrock];

/// The first row that fits says it. What bills does so below any prefix and comes first; what is free is listed path
/// by path.
const TABLE: &[Row] = &[
    // Anthropic Messages; batches, models, files
    (ANTHROPIC, "POST", "**/v1/messages", Billing(Shape::AnthropicMessages)),
    (ANTHROPIC, "POST", "**/v1/messages/batches", Refused(BATCH)),
    (ANTHROPIC, "POST", "v1/messages/count_tokens", Free),
    (ANTHROPIC, "POST", "v1/messages/batches/*/cancel", Free),
    (ANTHROPIC, "GET", "v1/messages/batches", Free),
    (ANTHROPIC, "GET DELETE", "v1/messages/batches/*", Free),
    (ANTHROPIC, "GET", "v1/messages/batches/*/results", Free),
    // agents that run at the provider; what they used is told again at each look
    (ANTHROPIC, "POST", "v1/sessions", Refused(LATER)),
    (ANTHROPIC, "POST", "v1/sessions/*/events", Refused(LATER)),
    (ANTHROPIC, "GET", "v1/sessions/**", Free),
    (ANTHROPIC, "GET", "v1/models", Free),
    (ANTHROPIC, "GET", "v1/models/*", Free),
    // Claude Code: telemetry, settings, the account
    (ANTHROPIC, "POST", "api/event_logging/batch", Free),
    (ANTHROPIC, "POST", "api/event_logging/v2/batch", Free),
    (ANTHROPIC, "POST", "api/claude_code/metrics", Free),
    (ANTHROPIC, "GET", "api/claude_code/settings|policy_limits", Free),
    (ANTHROPIC, "GET", "api/claude_code/organizations/metrics_enabled", Free),
    (ANTHROPIC, "GET", "api/hello", Free),
    (ANTHROPIC, "GET", "api/claude_cli/bootstrap", Free),
    (ANTHROPIC, "GET", "api/oauth/profile|usage", Free),
    (ANTHROPIC, "GET", "api/oauth/account/settings", Free),
    (ANTHROPIC, "GET", "api/oauth/claude_cli/roles|client_data", Free),
    (ANTHROPIC, "POST", "api/oauth/claude_cli/create_api_key", Free),
    // OpenAI Responses; reading a stored answer repeats usage that was charged when it was made
    (OPENAI, "POST", "**/responses", Billing(Shape::OpenaiResponses)),
    (OPENAI, "POST", "**/responses/compact", Billing(Shape::OpenaiResponses)),
    (OPENAI, "POST", "v1/responses/input_tokens", Free),
    (OPENAI, "POST", "v1/responses/*/cancel", Free),
    (OPENAI, "GET DELETE", "**/responses/*", Free),
    (OPENAI, "GET", "v1/responses/*/input_items", Free),
    // sessions by WebRTC and SIP: whatever opens one, or lets it be opened
    (OPENAI, "POST", "**/realtime/calls/*/hangup|reject|refer", Unlisted),
    (OPENAI, "POST", "**/realtime/**", Refused(ELSEWHERE)),
    (OPENAI, "POST", "**/live/**", Refused(ELSEWHERE)),
    (OPENAI, "GET", "v1/threads/**", Free),
    (OPENAI, "POST", "v1/threads/runs", Refused(LATER)),
    (OPENAI, "POST", "v1/threads|evals/*/runs", Refused(LATER)),
    (OPENAI, "POST", "v1/fine_tuning/jobs", Refused(LATER)),
    // Codex: models, telemetry, the account, plugins and what they let it call
    (OPENAI, "GET", "backend-api/codex/models", Free),
    (OPENAI, "GET", "backend-api/wham/usage", Free),
    (OPENAI, "GET", "backend-api/wham/config/requirements", Free),
    (OPENAI, "GET", "backend-api/wham/accounts/check", Free),
    (OPENAI, "GET", "backend-api/wham/settings/user", Free),
    (OPENAI, "GET", "backend-api/plugins/featured", Free),
    (OPENAI, "GET", "backend-api/plugins/export/curated", Free),
    (OPENAI, "GET", "backend-api/ps/plugins/**", Free),
    (OPENAI, "POST", "backend-api/ps/mcp", Free),
    // tasks that run at the provider
    (OPENAI, "POST", "backend-api/wham/tasks/**", Refused(LATER)),
    (OPENAI, "POST", "api/codex/tasks/**", Refused(LATER)),
    (OPENAI, "POST", "backend-api/codex/analytics-events/events", Free),
    // Gemini, at Google's own API and Vertex AI
    (GEMINI, "POST", "**/*:generateContent|*:streamGenerateContent", Billing(Shape::Gemini)),
    (GEMINI, "POST", "**/*:embedContent|*:batchEmbedContents", Billing(Shape::Gemini)),
    (GEMINI, "POST", "**/cachedContents", Billing(Shape::Gemini)),
    (GEMINI, "POST", "**/*:batchGenerateContent|*:asyncBatchEmbedContent", Refused(BATCH)),
    (GEMINI, "POST", "**/batchPredictionJobs", Refused(BATCH)),
    (GEMINI, "POST", "**/tuningJobs", Refused(LATER)),
    (GEMINI, "POST", "**/interactions", Refused(UNREAD)),
    (GEMINI, "POST", "**/fileSearchStores/*:importFile|*:uploadToFileSearchStore", Refused(LATER)),
    // Google's other ways to the same: methods of services by their names, and requests as parts of one
    (GEMINI, "POST", "**/*Service/*", Refused(UNREAD)),
    (GEMINI, "POST", "batch/**", Refused(SEVERAL)),
    (GEMINI, "GET PUT PATCH DELETE", "**/*:generateContent|*:streamGenerateContent", Refused(BY_POST)),
    (GEMINI, "GET PUT PATCH DELETE", "**/*:embedContent|*:batchEmbedContents", Refused(BY_POST)),
    (GEMINI, "GET PUT PATCH DELETE", "**/*:batchGenerateContent|*:asyncBatchEmbedContent", Refused(BY_POST)),
    (GEMINI, "POST", "**/*:countTokens|*:computeTokens", Free),
    (GEMINI, "POST", "**/publishers/anthropic/models/count-tokens:rawPredict", Free),
    (
        GEMINI,
        "POST",
        "**/publishers/anthropic/models/*:rawPredict|*:streamRawPredict",
        Billing(Shape::AnthropicMessages),
    ),
    (GEMINI, "GET", "*/models", Free),
    (GEMINI, "GET", "*/models/*", Free),
    (GEMINI, "POST", "upload/*/files", Free),
    (GEMINI, "GET POST", "*/files", Free),
    (GEMINI, "GET DELETE", "*/files/*", Free),
    (GEMINI, "GET", "*/cachedContents", Free),
    (GEMINI, "GET PATCH DELETE", "*/cachedContents/*", Free),
    // Code Assist: settings, telemetry, the account
    (GEMINI, "POST", "v1internal:loadCodeAssist|v1internal:onboardUser", Free),
    (GEMINI, "POST", "v1internal:fetchAdminControls|v1internal:listExperiments", Free),
    (GEMINI, "POST", "v1internal:recordCodeAssistMetrics|v1internal:retrieveUserQuota", Free),
    (GEMINI, "POST", "v1internal:setCodeAssistGlobalUserSetting", Free),
    (GEMINI, "GET", "v1internal:getCodeAssistGlobalUserSetting", Free),
    (GEMINI, "GET", "v1internal/operations/*", Free),
    // Bedrock's runtime; a model may be an ARN with slashes
    (BEDROCK, "POST", "model/**/invoke|invoke-with-response-stream", Billing(Shape::Bedrock)),
    (BEDROCK, "POST", "model/**/converse|converse-stream", Billing(Shape::Bedrock)),
    (BEDROCK, "POST", "model/**/invoke-with-bidirectional-stream", Refused(BIDIRECTIONAL)),
    (BEDROCK, "POST", "model/**/count-tokens", Free),
    (BEDROCK, "POST", "async-invoke", Refused(LATER)),
    (BEDROCK, "GET", "async-invoke", Free),
    (BEDROCK, "GET", "async-invoke/**", Free),
    // models by region, which Claude Code asks for at the gateway
    (BEDROCK, "GET", "inference-profiles", Free),
    // OpenAI's forms, wherever they are spoken
    (COMPATIBLE, "POST", "**/completions|embeddings", Billing(Shape::OpenaiChat)),
    (COMPATIBLE, "GET", "**/chat/completions", Free),
    (COMPATIBLE, "GET DELETE", "**/chat/completions/*", Free),
    (COMPATIBLE, "GET", "**/chat/completions/*/messages", Free),
    (COMPATIBLE, "POST", "**/batches", Refused(BATCH)),
    (COMPATIBLE, "GET", "**/batches|models", Free),
    (COMPATIBLE, "GET", "**/batches|models/*", Free),
    (COMPATIBLE, "POST", "v1/moderations|uploads", Free),
    (COMPATIBLE, "POST", "v1/uploads/*/parts|complete|cancel", Free),
    // files and login
    (&[Anthropic, Openai, OpenaiChat], "GET POST", "v1/files", Free),
    (&[Anthropic, Openai, OpenaiChat], "GET DELETE", "v1/files/*", Free),
    (&[Anthropic, Openai, OpenaiChat], "GET", "v1/files/*/content", Free),
    (&[Anthropic, Openai], "POST", "oauth/token", Free),
    (&[Anthropic, Openai], "POST", "v1/oauth/token", Free),
    (&[Anthropic, Openai], "GET", "oauth/authorize", Free),
    (
        &[Anthropic, Openai],
        "GET",
        ".well-known/oauth-authorization-server|openid-configuration|jwks.json",
        Free,
    ),
];

/// Looks up the endpoint. `path` has no query, and no gateway prefix.
#[must_use]
pub fn endpoint(dialect: Dialect, method: &str, path: &str) -> Endpoint {
    let Some(path) = path::canonical(path) else { return Endpoint::Ambiguous };
    let read = look_up(dialect, method, &path);
    let read_otherwise = look_up(dialect, method, &path::decoded(&path));
    if read == read_otherwise { read } else { Endpoint::Ambiguous }
}

fn look_up(dialect: Dialect, method: &str, path: &str) -> Endpoint {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let fits = |(dialects, methods, pattern, _): &&Row| {
        dialects.contains(&dialect)
            && methods.split(' ').any(|one| one == method)
            && fits_path(&pattern.split('/').collect::<Vec<_>>(), &segments)
    };
    TABLE.iter().find(fits).map_or(Endpoint::Unlisted, |(.., endpoint)| *endpoint)
}

fn fits_path(pattern: &[&str], path: &[&str]) -> bool {
    match pattern {
        [] => path.is_empty(),
        ["**", rest @ ..] => (0..=path.len()).any(|skipped| fits_path(rest, &path[skipped..])),
        [segment, rest @ ..] => path
            .split_first()
            .is_some_and(|(first, path)| fits_segment(segment, first) && fits_path(rest, path)),
    }
}

fn fits_segment(pattern: &str, segment: &str) -> bool {
    pattern.split('|').any(|one| match one.strip_prefix('*') {
        Some(end) => segment.len() > end.len() && segment.ends_with(end),
        None => segment == one,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Endpoint::Ambiguous;

    #[test]
    fn endpoints_by_dialect() {
        let (messages, chat, responses) =
            (Billing(Shape::AnthropicMessages), Billing(Shape::OpenaiChat), Billing(Shape::OpenaiResponses));
        let (gemini, bedrock) = (Billing(Shape::Gemini), Billing(Shape::Bedrock));
        let table = [
            (Anthropic, "POST", "/v1/messages", messages),
            (Anthropic, "POST", "/v1//messages/", messages),
            (Anthropic, "GET", "/v1/messages", Unlisted),
            (Anthropic, "POST", "/v1/messages/count_tokens", Free),
            (Anthropic, "POST", "/v1/messages/batches", Refused(BATCH)),
            (Anthropic, "GET", "/v1/messages/batches/b1/results", Free),
            (Anthropic, "GET", "/v1/models", Free),
            (Anthropic, "POST", "/api/event_logging/batch", Free),
            (Anthropic, "GET", "/.well-known/jwks.json", Free),
            (Anthropic, "POST", "/api/../v1/messages", Ambiguous),
            (Anthropic, "POST", "/api/%2e%2e/v1/messages", Ambiguous),
            (Anthropic, "POST", "/v1%2Fmessages", Ambiguous),
            (Anthropic, "POST", "/v1/%6dessages", messages),
            (Anthropic, "POST", "/api/anthropic/v1/messages", messages),
            (Anthropic, "POST", "/api/v1/messages/batches", Refused(BATCH)),
            (Anthropic, "POST", "/v1/sessions", Refused(LATER)),
            (Anthropic, "POST", "/v1/sessions/s1/events", Refused(LATER)),
            (Anthropic, "GET", "/v1/sessions/s1", Free),
            (Anthropic, "POST", "/v1/models", Unlisted),
            (Anthropic, "POST", "/api/organizations/o/chat_conversations/c/completion", Unlisted),
            (Anthropic, "POST", "/.well-known/x", Unlisted),
            (Anthropic, "POST", "/v1/complete", Unlisted),
            (Anthropic, "POST", "/v1/chat/completions", Unlisted),
            (Openai, "POST", "/v1/responses", responses),
            (Openai, "POST", "/v1/responses/compact", responses),
            (Openai, "POST", "/v1/responses/input_tokens", Free),
            (Openai, "GET", "/v1/responses/resp_1", Free),
            (Openai, "GET", "/v1/responses", Unlisted),
            (Openai, "GET", "/openai/v1/responses/resp_1", Free),
            (Openai, "POST", "/v1/responses/resp_1", Unlisted),
            (Openai, "GET", "/v1/threads/t1/runs/r1", Free),
            (Openai, "POST", "/v1/realtime/calls", Refused(ELSEWHERE)),
            (Openai, "POST", "/v1/realtime/calls/c1/accept", Refused(ELSEWHERE)),
            (Openai, "POST", "/v1/realtime/calls/c1/hangup", Unlisted),
            (Openai, "POST", "/v1/realtime/calls/c1/reject", Unlisted),
            (Openai, "POST", "/v1/realtime/client_secrets", Refused(ELSEWHERE)),
            (Openai, "POST", "/v1/realtime/translations/calls", Refused(ELSEWHERE)),
            (Openai, "POST", "/v1/realtime/translations/client_secrets", Refused(ELSEWHERE)),
            (Openai, "POST", "/openai/v1/realtime/translations/calls", Refused(ELSEWHERE)),
            (Openai, "POST", "/v1/live/sessions", Refused(ELSEWHERE)),
            (Openai, "POST", "/v1/threads/t1/runs", Refused(LATER)),
            (Openai, "POST", "/backend-api/codex/responses", responses),
            (Openai, "POST", "/backend-api/codex/responses/other", Unlisted),
            (Openai, "GET", "/backend-api/wham/usage", Free),
            (Openai, "POST", "/backend-api/wham/tasks", Refused(LATER)),
            (Openai, "POST", "/api/codex/tasks/t1/turns", Refused(LATER)),
            (Openai, "GET", "/backend-api/wham/tasks/list", Unlisted),
            (Openai, "GET", "/backend-api/plugins/export/curated", Free),
            (Openai, "GET", "/backend-api/ps/plugins/suggested/codex", Free),
            (Openai, "POST", "/backend-api/ps/mcp", Free),
            (Openai, "POST", "/backend-api/conversation", Unlisted),
            (Openai, "POST", "/v1/chat%2Fcompletions", Ambiguous),
            (Openai, "POST", "/v1/responses%2Fcompact", Ambiguous),
            (Openai, "POST", "/v1/chat/completions", chat),
            (Openai, "POST", "/v1/completions", chat),
            (Openai, "POST", "/v1/embeddings", chat),
            (Openai, "GET", "/v1/chat/completions", Free),
            (Openai, "GET", "/v1/chat/completions/c1", Free),
            (OpenaiChat, "POST", "/api/v1/chat/completions/c1", Unlisted),
            (Openai, "DELETE", "/v1/chat/completions", Unlisted),
            (Openai, "POST", "/v1/images/generations", Unlisted),
            (Openai, "POST", "/v1/batches", Refused(BATCH)),
            (Openai, "GET", "/v1/models/gpt-x", Free),
            (Openai, "POST", "/v1/moderations", Free),
            (OpenaiChat, "POST", "/openai/v1/chat/completions", chat),
            (Openai, "POST", "/openai/v1/responses", responses),
            (Openai, "POST", "/api/v1/responses/compact", responses),
            (OpenaiChat, "POST", "/v1/responses", Unlisted),
            (OpenaiChat, "GET", "/api/v1/models", Free),
            (OpenaiChat, "POST", "", Unlisted),
            (Gemini, "POST", "/v1beta/models/gemini-x:generateContent", gemini),
            (Gemini, "POST", "/v1beta/models/gemini-x%3AstreamGenerateContent", gemini),
            (Gemini, "POST", "/v1/projects/p/locations/l/publishers/google/models/g:generateContent", gemini),
            (Gemini, "POST", "/v1internal:streamGenerateContent", gemini),
            (Gemini, "POST", "/v1beta/cachedContents", gemini),
            (Gemini, "POST", "/v1beta/models/gemini-x:countTokens", Free),
            (Gemini, "POST", "/v1beta/models/gemini-x:batchGenerateContent", Refused(BATCH)),
            (Gemini, "POST", "/v1/projects/p/publishers/anthropic/models/c:streamRawPredict", messages),
            (Gemini, "POST", "/v1/projects/p/publishers/anthropic/models/count-tokens:rawPredict", Free),
            (Gemini, "POST", "/v1beta/openai/chat/completions", chat),
            (Gemini, "POST", "/v1internal:loadCodeAssist", Free),
            (Gemini, "POST", "/v1internal:somethingNew", Unlisted),
            (Gemini, "GET", "/v1beta/models/gemini-x", Free),
            (Gemini, "POST", "/v1beta/interactions", Refused(UNREAD)),
            (Gemini, "POST", "/v1beta/fileSearchStores/s:importFile", Refused(LATER)),
            (Gemini, "POST", "/upload/v1beta/fileSearchStores/s:uploadToFileSearchStore", Refused(LATER)),
            (Gemini, "POST", "/v1/projects/p/locations/l/publishers/google/models/m:predict", Unlisted),
            (
                Gemini,
                "POST",
                "/google.ai.generativelanguage.v1beta.GenerativeService/StreamGenerateContent",
                Refused(UNREAD),
            ),
            (Gemini, "POST", "/$rpc/google.cloud.aiplatform.v1.PredictionService/Predict", Refused(UNREAD)),
            (Gemini, "POST", "/batch", Refused(SEVERAL)),
            (Gemini, "POST", "/batch/v1beta", Refused(SEVERAL)),
            (Gemini, "GET", "/v1beta/models/gemini-x:generateContent", Refused(BY_POST)),
            (Gemini, "PATCH", "/v1beta/files/x%3AbatchEmbedContents", Refused(BY_POST)),
            (Gemini, "POST", "/v1beta/models/:generateContent", Unlisted),
            (Bedrock, "POST", "/model/anthropic.claude-x-v1%3A0/invoke", bedrock),
            (Bedrock, "POST", "/model/arn%3Aaws%3Abedrock%3Aeu%3A1%3Aprofile%2Fx/converse-stream", bedrock),
            (Bedrock, "POST", "/model/m%2Finvoke", Ambiguous),
            (Bedrock, "POST", "/model/m/invoke-with-bidirectional-stream", Refused(BIDIRECTIONAL)),
            (Bedrock, "POST", "/model/m/count-tokens", Free),
            (Bedrock, "POST", "/async-invoke", Refused(LATER)),
            (Bedrock, "GET", "/async-invoke/arn%3Aaws%2Fx", Free),
            (Bedrock, "GET", "/inference-profiles", Free),
            (Bedrock, "POST", "/guardrail/g/version/1/apply", Unlisted),
            (Bedrock, "POST", "/openai/v1/chat/completions", chat),
        ];
        for (dialect, method, path, expected) in table {
            assert_eq!(endpoint(dialect, method, path), expected, "{dialect:?} {method} {path}");
        }
    }
}
