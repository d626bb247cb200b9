"""A backbone family: Mistral. Try: cm3kit --plugin my_backbone.py train cm3 --set backbone.family=mistral."""

from functools import partial

from transformers import MistralConfig, MistralForCausalLM

from cm3kit.models.backbone import families

families("mistral")((partial(MistralConfig, sliding_window=None), MistralForCausalLM))
