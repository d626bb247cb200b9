"""A quantizer: codes by the largest inner product. Try: cm3kit train vqgan --set tokenizer.quantizer=inner-product."""

import torch
from torch import Tensor

from cm3kit_tokenizers.vq.quantizers import Quantizer, quantizers


@quantizers("inner-product")
class InnerProduct(Quantizer):
    """The longer a code, the more vectors it gets."""

    def scores(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """How well each code fits (N, K)."""
        return self.prepare(vectors_ND.float()) @ codebook_KD.float().T

    def codes(self, vectors_ND: Tensor, codebook_KD: Tensor) -> Tensor:
        """The code of each vector (N,)."""
        return torch.argmax(self.scores(vectors_ND, codebook_KD), -1)
