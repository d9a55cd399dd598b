"""Write clip_vocabulary.json: ids that transformers gives with CLIP's own vocabulary. Needs the `golden` extra, and
open_clip_torch, whose tokenizer makes the vocabulary.

"texts", and "ids" by padding token, (texts, 77). What open_clip itself makes of the texts that it reads alike is
compared here: it repairs some of Unicode first, and does not know special tokens in a text.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
import tempfile
from pathlib import Path

import open_clip.tokenizer
import transformers
from make_tokenizer import BOS, EOS, TEXTS

FILE = Path(__file__).with_name("clip_vocabulary.json")
PROMPTS = [
    "a photo of an astronaut riding a horse on mars",
    "masterpiece, best quality, 1girl, solo, (detailed background:1.2), looking at viewer, <lora:add_detail:0.7>",
    "Cinematic still, f/1.4, 85mm lens, bokeh, volumetric lighting, octane render, 8k UHD, trending on artstation",
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality",
    "score_9, score_8_up, score_7_up, source_anime, rating_safe, BREAK, dynamic pose",
    "a sign that says \"Hello, World!\" in neon; it's 3:45pm & the café's closed... isn't it?",
    "Pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "naïve façade, Übergröße, smörgåsbord, Łódź, İzmir, Ærøskøbing, São Paulo",
    "富士山と桜、浮世絵風 一只猫 고양이 قطة кошка γάτα",
    "🚀🌕 to the moon!!! 💎🙌 #wagmi @elonmusk https://example.com/?q=1&r=2",
    "ALL CAPS PROMPT WITH numb3rs 12345 67.89 1,000,000",
    "under_score-hyphen—em–en…ellipsis ‘single’ “double” `tick` ~tilde^ | pipe \\ back / slash",
]
READ_ALIKE = [0, 1, 2, 3, 4, 6, 10]


def read_tokenizer(pad_token: str) -> transformers.CLIPTokenizer:
    """transformers' tokenizer with CLIP's own vocabulary."""
    own = open_clip.tokenizer.SimpleTokenizer()
    tokens = [*list(own.encoder)[:-2], BOS, EOS]
    lines = ["#version: 0.2", *(" ".join(merge) for merge in own.bpe_ranks)]
    roles = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": pad_token}
    with tempfile.TemporaryDirectory() as folder:
        vocab = {token: i for i, token in enumerate(tokens)}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        config = json.dumps(roles | {"model_max_length": 77})
        (Path(folder) / "tokenizer_config.json").write_text(config, encoding="utf-8")
        return transformers.CLIPTokenizer.from_pretrained(folder)


def main() -> None:
    texts = [*PROMPTS, *TEXTS]
    ids = {
        pad_token: read_tokenizer(pad_token)(texts, padding="max_length", truncation=True)["input_ids"]
        for pad_token in (EOS, "!")
    }
    own = open_clip.tokenizer.SimpleTokenizer(context_length=77)
    for index in READ_ALIKE:
        assert own(texts[index])[0].tolist() == ids["!"][index], texts[index]
    FILE.write_text(json.dumps({"texts": texts, "ids": ids}) + "\n", encoding="utf-8")
    print(f"transformers {transformers.__version__}: {len(texts)} texts, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
