"""Chat templates: `plain` and `v1` of LLaVA-1.5, or the language model's own ("llm")."""

_CONTENT = (
    "{%- macro say(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>' }}{{ gap }}"
    "{%- elif part['type'] == 'video' -%}{{ '<video>' }}{{ gap }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)

# Pre-training: only the picture and its caption. The text of the user is left out.
PLAIN = (
    "{%- set gap = '' -%}" + _CONTENT + "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ say(message['content']) }}{{ '\\n' }}{% endgeneration %}"
    "{%- elif message['content'] is not string -%}"
    "{{ say(message['content'] | rejectattr('type', 'equalto', 'text') | list) }}"
    "{%- endif -%}{%- endfor -%}"
)

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

# Vicuna v1.
V1 = (
    "{%- set gap = '\\n' -%}"
    + _CONTENT
    + "{%- if messages[0]['role'] != 'system' -%}{{ '"
    + SYSTEM.replace("'", "\\'")
    + " ' }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ say(message['content']) + ' ' }}"
    "{%- elif message['role'] == 'user' -%}{{ 'USER: ' + say(message['content']) + ' ' }}"
    "{%- else -%}{{ 'ASSISTANT:' }}"
    "{% generation %}{{ ' ' + say(message['content']) + eos_token }}{% endgeneration %}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)

TEMPLATES = {"plain": PLAIN, "v1": V1}

# For templates without pictures: the content of each message becomes one string, with a
# placeholder and a line break in place of each picture.
FLATTEN = (
    "{%- set gap = '\\n' -%}" + _CONTENT + "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set flat.messages = flat.messages + [dict(message, content=say(message['content']))] -%}"
    "{%- endfor -%}{%- set messages = flat.messages -%}"
)
