"""Chat templates that read more than contents, in the formats of families that have such templates."""

from __future__ import annotations

import json

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

# As those of Qwen3-VL: tools, calls, answers of tools, an argument, and reasoning after the last question only.
CHATML = (
    "{%- if tools %}<|im_start|>system\n{%- for tool in tools %}{{ tool | tojson }}{%- endfor %}<|im_end|>\n{% endif %}"
    "{%- set ns = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
    "{%- if m.reasoning_content and loop.index0 > ns.last %}<think>{{ m.reasoning_content }}</think>{%- endif %}"
    "{%- if m.content is string %}{{ m.content }}{%- else %}{%- for part in m.content %}"
    f"{{{{ part.text if part.type == 'text' else '{IMAGE}' }}}}"
    "{%- endfor %}{%- endif %}"
    '{%- for call in m.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}</tool_call>{%- endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}<think>{{ '\n\n' }}</think>{{ '\n\n' }}"
    "{%- endif %}{%- endif %}"
)

# As that of Qwen3-VL-Thinking: the prompt opens a thought, and one of an earlier answer is read from its content too.
THINKING = (
    "{%- set ns = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}"
    "{%- if m.content is string %}{%- set content = m.content %}{%- else %}{%- set content %}"
    f"{{% for part in m.content %}}{{{{ part.text if part.type == 'text' else '{IMAGE}' }}}}{{% endfor %}}"
    "{% endset %}{%- endif %}"
    "{%- if m.role == 'assistant' %}"
    "{%- set reasoning = m.reasoning_content or '' %}"
    "{%- if not reasoning and '</think>' in content %}"
    "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{%- endif %}"
    "{%- if loop.index0 > ns.last %}{%- set content = "
    "'<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') %}{%- endif %}"
    "{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)

CATEGORIES = (
    "Violent Crimes",
    "Non-Violent Crimes",
    "Sex Crimes",
    "Child Exploitation",
    "Defamation",
    "Specialized Advice",
    "Privacy",
    "Intellectual Property",
    "Indiscriminate Weapons",
    "Hate",
    "Self-Harm",
    "Sexual Content",
    "Elections",
)
NUMBERED = {f"S{number}": f"{name}." for number, name in enumerate(CATEGORIES, 1)}

# The prompt of Llama-Guard-3-11B-Vision, byte for byte: the image comes first wherever it was, turns are told as text,
# and the header of the answer is written whether a generation prompt is asked for or not.
GUARD = (
    f"{{%- if categories is not defined %}}{{%- set categories = {json.dumps(NUMBERED)} %}}{{%- endif %}}"
    "{%- set judged = 'User' if messages | length % 2 else 'Agent' %}"
    "{%- set ns = namespace(image='') %}"
    "{%- for m in messages %}{%- for part in m.content if part.type == 'image' %}{%- set ns.image = '<|image|> ' %}"
    "{%- endfor %}{%- endfor %}"
    "{{- '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n' + ns.image }}"
    '{{- "Task: Check if there is unsafe content in \'" + judged + "\' messages in conversations according our safety '
    'policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n" }}'
    "{%- for key in categories if key not in (excluded_category_keys or []) %}"
    "{{- key + ': ' + categories[key] + '\n' }}{%- endfor %}"
    "{{- '<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n' }}"
    "{%- for m in messages %}"
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- for part in m.content if part.type == 'text' %}"
    "{{- ('User' if m.role == 'user' else 'Agent') + ': ' + part.text | trim + '\n\n' }}{%- endfor %}{%- endfor %}"
    "{{- '<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST ' + judged + ' message in the above "
    "conversation:\n' }}"
    "{{- \" - First line must read 'safe' or 'unsafe'.\n - If unsafe, a second line must include a comma-separated "
    'list of violated categories. <|eot_id|><|start_header_id|>assistant<|end_header_id|>" }}'
)
