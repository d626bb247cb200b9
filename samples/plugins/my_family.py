"""A family of public models: folders of a Qwen3 that looks both ways and scores each place at itself.

Try: cm3kit --plugin my_family.py infill page.html -m FOLDER, where config.json says "model_type": "two_way_qwen".
"""

from transformers import Qwen3Config, Qwen3ForCausalLM

from cm3kit.models.families import Family, families
from cm3kit_tokenizers.vocab import Vocab

families("two-way-qwen")(
    Family(
        name="two-way-qwen",
        about="a masked-diffusion model on Qwen3",
        owns=lambda raw, name: raw.get("model_type") == "two_way_qwen",
        config=lambda raw: Qwen3Config.from_dict({**raw, "model_type": "qwen3"}),
        architecture=Qwen3ForCausalLM,
        mask=lambda raw: int(raw["mask_token_id"]),
        shift=False,
        specials={Vocab.eod: ("<|endoftext|>",), Vocab.eoss: ("<|endoftext|>",), Vocab.mask: ("<|mask|>",)},
        preset="llada",
        defaults={"diffusion": {"text": {"steps": 4, "batch_size": 2}}},
    )
)
