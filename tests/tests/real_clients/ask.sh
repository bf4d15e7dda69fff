# Asks one question by curl, as ask.py does by an SDK; the answer's bytes are the output.
stream=false
[ "$2" = stream ] && stream=true
openai="${OPENAI_BASE_URL:-https://api.openai.com/v1}"
messages='"messages": [{"role": "user", "content": "Hello"}]'
case $1 in
anthropic)
  url="${ANTHROPIC_BASE_URL:-https://api.anthropic.com}/v1/messages"
  question="{\"model\": \"claude-mock-1\", \"max_tokens\": 64, \"stream\": $stream, $messages}"
  ;;
chat)
  url="$openai/chat/completions"
  question="{\"model\": \"gpt-mock-1\", \"stream\": $stream, $messages}"
  ;;
responses)
  url="$openai/responses"
  question="{\"model\": \"gpt-mock-1\", \"stream\": $stream, \"input\": \"Hello\"}"
  ;;
generate)
  method=generateContent
  [ "$stream" = true ] && method='streamGenerateContent?alt=sse'
  url="${GOOGLE_GEMINI_BASE_URL:-https://generativelanguage.googleapis.com}/v1beta/models/gemini-mock-1:$method"
  question='{"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}'
  ;;
esac
exec curl -w '%{stderr}by HTTP/%{http_version}\n' -sS --fail-with-body --no-buffer -H 'anthropic-version: 2023-06-01' -H "x-api-key: $ANTHROPIC_API_KEY" \
  -H "authorization: Bearer $OPENAI_API_KEY" -H "x-goog-api-key: $GEMINI_API_KEY" \
  -H 'content-type: application/json' --data-binary "$question" "$url"
