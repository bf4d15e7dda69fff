// Asks one question through one of the Node SDKs, as ask.py does. Given to node as a word, for then it looks for the
// SDKs in the working directory.
const [sdk, mode] = process.argv.slice(1);
const stream = mode === "stream";
const messages = [{ role: "user", content: "Hello" }];
const say = (text) => process.stdout.write(text ?? "");

async function anthropic() {
  const { default: Anthropic } = await import("@anthropic-ai/sdk");
  const answer = await new Anthropic().messages.create({ model: "claude-mock-1", max_tokens: 64, messages, stream });
  if (!stream) return say(answer.content[0].text);
  for await (const event of answer) if (event.type === "content_block_delta") say(event.delta.text);
}

async function chat() {
  const { default: OpenAI } = await import("openai");
  const answer = await new OpenAI().chat.completions.create({ model: "gpt-mock-1", messages, stream });
  if (!stream) return say(answer.choices[0].message.content);
  for await (const chunk of answer) say(chunk.choices[0]?.delta?.content);
}

async function responses() {
  const { default: OpenAI } = await import("openai");
  const answer = await new OpenAI().responses.create({ model: "gpt-mock-1", input: "Hello", stream });
  if (!stream) return say(answer.output_text);
  for await (const event of answer) if (event.type === "response.output_text.delta") say(event.delta);
}

async function generate() {
  const { GoogleGenAI } = await import("@google/genai");
  const { models } = new GoogleGenAI({ apiKey: process.env.GEMINI_API_KEY });
  const question = { model: "gemini-mock-1", contents: "Hello" };
  if (!stream) return say((await models.generateContent(question)).text);
  for await (const chunk of await models.generateContentStream(question)) say(chunk.text);
}

async function bedrock() {
  const { default: AnthropicBedrock } = await import("@anthropic-ai/bedrock-sdk");
  const question = { model: "anthropic.claude-mock-v1:0", max_tokens: 64, messages, stream };
  const answer = await new AnthropicBedrock().messages.create(question);
  if (!stream) return say(answer.content[0].text);
  for await (const event of answer) if (event.type === "content_block_delta") say(event.delta.text);
}

async function invoke() {
  const sdk = await import("@aws-sdk/client-bedrock-runtime");
  const client = new sdk.BedrockRuntimeClient();
  const body = JSON.stringify({ anthropic_version: "bedrock-2023-05-31", max_tokens: 64, messages });
  const question = { modelId: "anthropic.claude-mock-v1:0", body };
  const read = (bytes) => JSON.parse(new TextDecoder().decode(bytes));
  if (!stream) return say(read((await client.send(new sdk.InvokeModelCommand(question))).body).content[0].text);
  const answer = await client.send(new sdk.InvokeModelWithResponseStreamCommand(question));
  for await (const { chunk } of answer.body) say(read(chunk.bytes).delta?.text);
}

async function converse() {
  const sdk = await import("@aws-sdk/client-bedrock-runtime");
  const client = new sdk.BedrockRuntimeClient();
  const said = [{ role: "user", content: [{ text: "Hello" }] }];
  const question = { modelId: "anthropic.claude-mock-v1:0", messages: said };
  if (!stream) return say((await client.send(new sdk.ConverseCommand(question))).output.message.content[0].text);
  const answer = await client.send(new sdk.ConverseStreamCommand(question));
  for await (const event of answer.stream) say(event.contentBlockDelta?.delta.text);
}

await { anthropic, chat, responses, generate, bedrock, invoke, converse }[sdk]();
