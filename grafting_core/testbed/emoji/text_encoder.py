"""Text encoder: a closed vocabulary and one transformer layer, trained with the denoiser."""

from functools import cache

import torch
from torch import Tensor, nn

from grafting_core.testbed.emoji.prompts import captions
from grafting_core.testbed.emoji.vocabulary import CLASSES, COLOURS, NUMBERS, RELATIONS, plural

WIDTH = 144
HEADS = 6
MAX_TOKENS = 16
PAD, END = 0, 1


@cache
def word_numbers() -> dict[str, int]:
    """Token of every word that captions contain."""
    phrases = [*CLASSES, *map(plural, CLASSES), *COLOURS, *NUMBERS.values(), *RELATIONS, "a an and of photo"]
    words = sorted({word for phrase in phrases for word in phrase.split()})
    return {word: number for number, word in enumerate(words, start=END + 1)}


def tokenise(caption: str) -> list[int]:
    """Tokens [MAX_TOKENS] of a caption, with end and padding; the empty caption is the null condition.

    Raises ValueError for a word outside the vocabulary and for a caption that is too long.
    """
    words = caption.lower().split()
    known = word_numbers()
    if unknown := [word for word in words if word not in known]:
        raise ValueError(
            f"the caption {caption!r} has {', '.join(map(repr, unknown))}, which the text encoder does not "
            f"know; its {len(known)} words are those of GenEval's grammar over {', '.join(CLASSES)}"
        )
    if len(words) >= MAX_TOKENS:
        raise ValueError(f"the caption {caption!r} has {len(words)} words; at most {MAX_TOKENS - 1} fit")
    return [*(known[word] for word in words), END, *[PAD] * (MAX_TOKENS - 1 - len(words))]


def token_batch(texts: list[str]) -> Tensor:
    """Tokens [B, MAX_TOKENS] of several captions."""
    return torch.tensor([tokenise(text) for text in texts])


@cache
def token_table() -> Tensor:
    """Tokens of every caption by row, uint8."""
    return token_batch([caption.text for caption in captions()]).to(torch.uint8)


class TextEncoder(nn.Module):
    """Embedding, learned positions and one pre-norm transformer layer; 0.26 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(END + 1 + len(word_numbers()), WIDTH)
        self.positions = nn.Parameter(torch.randn(MAX_TOKENS, WIDTH) * 0.02)
        nn.init.normal_(self.words.weight, std=0.5)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, L] -> embeddings [B, L, WIDTH] and their mask [B, L], true up to the end token."""
        mask = tokens_BL != PAD
        hidden = self.layer(self.words(tokens_BL) + self.positions, src_key_padding_mask=~mask)
        embeddings: Tensor = self.norm(hidden)
        return embeddings, mask
