"""The chat template of a reranker, with the roles query and document."""

RERANKER = """
{%- macro written(role, otherwise) -%}
{%- for message in messages if message.role == role -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- else -%}{{ otherwise }}{%- endfor -%}
{%- endmacro -%}
<|im_start|>system
Judge by the instruct. Answer yes or no.<|im_end|>
<|im_start|>user
<Instruct>: {{ written("system", "Find what answers the query.") }}<Query>:{{ written("query", "") }}
<Document>:{{ written("document", "") }}<|im_end|>
<|im_start|>assistant
"""
