import json

from penstock.core import semconv
from penstock.core.telemetry_content import PART_CHARS_MAX, answer, prompt
from penstock.type.v1.chat_pb2 import (
    ROLE_USER,
    ChatInput,
    Choice,
    ContentPart,
    FinishReason,
    ImageUrl,
    Message,
)

CHAT = ChatInput(messages=[Message(role=ROLE_USER, content=[ContentPart(text="my diary")])])


def test_prompts_and_answers_are_absent_unless_switched_on():
    choice = Choice(message=CHAT.messages[0])

    assert {} == prompt(CHAT, record_prompts=False)
    assert {} == answer([choice], record_prompts=False)


def test_switched_on_they_have_the_conventions_form():
    found = prompt(CHAT, record_prompts=True)

    expected = [{"role": "user", "parts": [{"type": "text", "content": "my diary"}]}]
    assert expected == json.loads(found[semconv.INPUT_MESSAGES])


def test_an_answer_says_how_it_ended():
    choice = Choice(message=CHAT.messages[0], finish_reason=FinishReason.FINISH_REASON_TOOL_CALLS)
    found = answer([choice], record_prompts=True)

    assert "tool_calls" == json.loads(found[semconv.OUTPUT_MESSAGES])[0]["finish_reason"]


def test_long_texts_are_cut_and_images_left_out():
    image = ContentPart(image_url=ImageUrl(url="data:image/png;base64," + "A" * 100_000))
    chat = ChatInput(
        messages=[Message(role=ROLE_USER, content=[ContentPart(text="x" * 100_000), image])]
    )

    text = prompt(chat, record_prompts=True)[semconv.INPUT_MESSAGES]

    assert len(text) < PART_CHARS_MAX + 300
    assert "AAAA" not in text
