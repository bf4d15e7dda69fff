"""Asks one question through one of the Python SDKs: ask.py SDK stream|whole. The answer's text is the output."""
import json
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


def bedrock():
    from anthropic import AnthropicBedrock

    question = {"model": "anthropic.claude-mock-v1:0", "max_tokens": 64, "messages": messages}
    if not stream:
        return [AnthropicBedrock().messages.create(**question).content[0].text]
    with AnthropicBedrock().messages.stream(**question) as answer:
        return list(answer.text_stream)


def invoke():
    import boto3

    body = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 64, "messages": messages}
    question = {"modelId": "anthropic.claude-mock-v1:0", "body": json.dumps(body)}
    client = boto3.client("bedrock-runtime")
    if not stream:
        return [json.load(client.invoke_model(**question)["body"])["content"][0]["text"]]
    chunks = client.invoke_model_with_response_stream(**question)["body"]
    events = [json.loads(chunk["chunk"]["bytes"]) for chunk in chunks]
    return [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]


def converse():
    import boto3

    said = [{"role": "user", "content": [{"text": "Hello"}]}]
    question = {"modelId": "anthropic.claude-mock-v1:0", "messages": said}
    client = boto3.client("bedrock-runtime")
    if not stream:
        return [client.converse(**question)["output"]["message"]["content"][0]["text"]]
    events = client.converse_stream(**question)["stream"]
    return [event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event]


apis = [anthropic, chat, responses, generate, bedrock, invoke, converse]
ask = {api.__name__: api for api in apis}[sdk]
sys.stdout.buffer.write("".join(ask()).encode())
