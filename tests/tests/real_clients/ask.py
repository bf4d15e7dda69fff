"""Asks one question through one of the Python SDKs: ask.py SDK stream|whole. The answer's text is the output."""
import sys

sdk, stream = sys.argv[1], sys.argv[2] == "stream"
messages = [{"role": "user", "content": "Hello"}]


def anthropic():
    from anthropic import Anthropic

    question = {"model": "claude-mock-1", "max_tokens": 64, "messages": messages}
    if not stream:
        return [Anthropic().messages.create(**question).content[0].text]
    with Anthropic().messages.stream(**question) as answer:
        return list(answer.text_stream)


def chat():
    from openai import OpenAI

    question = {"model": "gpt-mock-1", "messages": messages}
    if not stream:
        return [OpenAI().chat.completions.create(**question).choices[0].message.content]
    chunks = OpenAI().chat.completions.create(stream=True, **question)
    return [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]


def responses():
    from openai import OpenAI

    question = {"model": "gpt-mock-1", "input": "Hello"}
    if not stream:
        return [OpenAI().responses.create(**question).output_text]
    events = OpenAI().responses.create(stream=True, **question)
    return [event.delta for event in events if event.type == "response.output_text.delta"]


def generate():
    from google.genai import Client

    question = {"model": "gemini-mock-1", "contents": "Hello"}
    client = Client()
    if not stream:
        return [client.models.generate_content(**question).text]
    return [chunk.text or "" for chunk in client.models.generate_content_stream(**question)]


ask = {"anthropic": anthropic, "chat": chat, "responses": responses, "generate": generate}[sdk]
sys.stdout.buffer.write("".join(ask()).encode())
