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

await { anthropic, chat, responses, generate }[sdk]();
