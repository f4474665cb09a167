"""A small CLIP of random weights, in the files of openai/clip-vit-large-patch14 that are read."""

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

LETTERS = "abcdefghijklmnopqrstuvwxyz-"
SIDE = 16


def write_clip(folder: Path) -> Path:
    """Letters are its tokens, and `re` and `red` are merged."""
    symbols = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>"]
    vocabulary = {symbol: row for row, symbol in enumerate([*symbols, "<|startoftext|>", "<|endoftext|>"])}
    layers = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        **layers,
        "vocab_size": len(vocabulary),
        "eos_token_id": vocabulary["<|endoftext|>"],
        "bos_token_id": vocabulary["<|startoftext|>"],
    }
    vision = {**layers, "image_size": SIDE, "patch_size": 4}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (folder / "tokenizer.json").write_text("no tokenizer: this file must not be read")
    return folder
