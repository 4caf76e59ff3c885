"""Families from before chat templates, which are asked by their processor's plain call with an image and a text."""

from __future__ import annotations

from typing import Any

from tokenizers import processors

from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.text_configs import decoder, ids_of
from vlmprobe.testing.tiny.tokenizers import byte_level, sentence_piece
from vlmprobe.testing.tiny.vision_configs import MEAN_STD, square, tower

__all__: list[str] = []

CODES = 32  # entries of Chameleon's codebook of image tokens
QUERIES = 8  # positions of an image in BLIP-2 and InstructBLIP


@family("chameleon", chat=False, notes="A logit of the lowest float forbids every image token.")
def _chameleon() -> Parts:
    # A code is written in letters, A for 0 to J for 9, between IMGIMG and Z.
    codes = ["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z" for code in range(CODES)]
    marks = ("<racm3:break>", "<eoss>", "<image>")
    tokenizer = byte_level(
        specials=("<s>", "<pad>", "</s>", "<unk>", "<reserved08706>", *marks, *codes),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
        add_bos=True,
        named={"boi_token": marks[0], "eoi_token": marks[1], "image_token": marks[2]},
        sep_token="<reserved08706>",
    )
    processor = hf.ChameleonProcessor(
        image_processor=hf.ChameleonImageProcessor(size={"shortest_edge": 32}, crop_size=square(32)),
        tokenizer=tokenizer,
        image_seq_length=16,
    )
    config = hf.ChameleonConfig(
        vq_config={
            "embed_dim": 16,
            "num_embeddings": CODES,
            "latent_channels": 16,
            "resolution": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],  # the grid is halved three times
            "num_res_blocks": 1,
        },
        vocabulary_map=tokenizer.get_vocab(),
        **decoder(tokenizer),
    )
    return Parts(config, processor, ("</s>",))


def _query_transformer(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "encoder_hidden_size": 32,
        **more,
    }


def _blip_images() -> Any:
    return hf.BlipImageProcessor(size=square(32), **MEAN_STD)


@family("blip_2", "blip-2", chat=False, text_only=False, several_images=False)
def _blip_2() -> Parts:
    tokenizer = byte_level(specials=("</s>", "<pad>", "<image>"), bos="</s>", eos="</s>", pad="<pad>", add_bos=True)
    processor = hf.Blip2Processor(image_processor=_blip_images(), tokenizer=tokenizer, num_query_tokens=QUERIES)
    text = hf.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=512,
        **ids_of(tokenizer),
    )
    config = hf.Blip2Config(
        vision_config=tower(),
        qformer_config=_query_transformer(),
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return Parts(config, processor, ("</s>",))


@family(
    "instructblip",
    chat=False,
    text_only=False,
    several_images=False,
    batching=False,
    notes="The padding of a batch, which is between image and text, counts as positions (4.8).",
)
def _instructblip() -> Parts:
    tokenizer = sentence_piece(specials=("<image>", "<pad>"), pad="<pad>")
    question = byte_level(specials=("[PAD]", "[UNK]", "[SEP]"), eos="[SEP]", pad="[PAD]", unk="[UNK]")
    processor = hf.InstructBlipProcessor(
        image_processor=_blip_images(), tokenizer=tokenizer, qformer_tokenizer=question, num_query_tokens=QUERIES
    )
    config = hf.InstructBlipConfig(
        vision_config=tower(),
        qformer_config=_query_transformer(vocab_size=len(question)),
        text_config=hf.LlamaConfig(**decoder(tokenizer, rms_norm_eps=1e-5)),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return Parts(config, processor, ("</s>",))


@family(
    "kosmos_2",
    "kosmos-2",
    chat=False,
    text_only=False,
    several_images=False,
    notes="After the prefill of a batch, its positions count the padding.",
)
def _kosmos_2() -> Parts:
    tokenizer = byte_level(
        specials=("<s>", "<pad>", "</s>", "<unk>"), bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", add_bos=True
    )
    # The processor writes an image as the ids that follow the unknown token's, as many as the model has queries.
    tokenizer.add_tokens([f"<query_{place:02}>" for place in range(64)])
    processor = hf.Kosmos2Processor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square(32)),
        tokenizer=tokenizer,
        num_patch_index_tokens=16,
    )
    config = hf.Kosmos2Config(
        text_config={
            "vocab_size": len(tokenizer),
            "embed_dim": 64,
            "layers": 3,
            "ffn_dim": 96,
            "attention_heads": 4,
            "max_position_embeddings": 512,
            **ids_of(tokenizer),
        },
        vision_config=tower(),
        latent_query_num=64,
    )
    # The embeddings are scaled by eight: without this, the tied head would repeat the last token.
    return Parts(config, processor, ("</s>",), scales={"out_proj": 3.0, "fc2": 3.0})


@family(
    "git",
    since="5.18.0",
    before="its generated tokens are moved by the length of the image",
    chat=False,
    several_images=False,
    positions=True,
    notes="Its image has no placeholders: the model puts it first.",
)
def _git() -> Parts:
    tokenizer = byte_level(
        specials=("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
        eos="[SEP]",
        pad="[PAD]",
        unk="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    processor = hf.GitProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square(32)), tokenizer=tokenizer
    )
    config = hf.GitConfig(
        vision_config=tower(),
        **decoder(tokenizer, max_position_embeddings=512, bos_token_id=tokenizer.cls_token_id),
    )
    return Parts(config, processor, ("[SEP]",))
