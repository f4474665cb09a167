"""The Inception network of 2015-12-05 (Szegedy et al. 2015), which published FIDs use.

Differs from later Inception-v3 versions in three ways: average pools exclude padding from the mean, the
last block uses maximum pooling, and there are 1008 classes. Parameter names are those of ported weight files.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

Kernel = int | tuple[int, int]
CLASSES = 1008
WIDTH = 2048


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU; padded to keep the size unless it has a stride."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Kernel = 1, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad and stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


Row = tuple[str, int, Kernel, int]
"""Name, outputs, kernel, stride of one unit of a branch."""


class Block(nn.Module):
    """Parallel branches. Each is a chain of units; a fork is a tuple of rows with the same input."""

    def __init__(
        self, inputs: int, chains: Sequence[Sequence[Row | tuple[Row, Row]]], pool: str, pooled: int = 0
    ) -> None:
        super().__init__()
        self.chains: list[list[tuple[str, ...]]] = [self._add_chain(inputs, chain) for chain in chains]
        self.pool = pool
        if pooled:
            self.branch_pool = Unit(inputs, pooled)

    def _add_chain(self, inputs: int, chain: Sequence[Row | tuple[Row, Row]]) -> list[tuple[str, ...]]:
        names: list[tuple[str, ...]] = []
        for step in chain:
            rows: tuple[Row, ...] = (step,) if isinstance(step[0], str) else step
            for name, outputs, kernel, stride in rows:
                self.add_module(name, Unit(inputs, outputs, kernel, stride))
            inputs = sum(row[1] for row in rows)
            names.append(tuple(row[0] for row in rows))
        return names

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self._chain(x, names) for names in self.chains), self._pooled(x)], dim=1)

    def _chain(self, x: Tensor, names: list[tuple[str, ...]]) -> Tensor:
        for step in names:
            x = torch.cat([self.get_submodule(name)(x) for name in step], dim=1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "stride":
            return max_pool2d(x, 3, 2)
        inner = self.pool == "average"
        smooth = avg_pool2d(x, 3, 1, 1, count_include_pad=False) if inner else max_pool2d(x, 3, 1, 1)
        pooled: Tensor = self.branch_pool(smooth)
        return pooled


def grid_35(inputs: int, pooled: int) -> Block:
    """35 x 35: 1x1, 5x5, double 3x3, pool."""
    return Block(
        inputs,
        [
            [("branch1x1", 64, 1, 1)],
            [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
            [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)],
        ],
        "average",
        pooled,
    )


def to_grid_17(inputs: int) -> Block:
    """35 x 35 to 17 x 17."""
    double: list[Row] = [
        ("branch3x3dbl_1", 64, 1, 1),
        ("branch3x3dbl_2", 96, 3, 1),
        ("branch3x3dbl_3", 96, 3, 2),
    ]
    return Block(inputs, [[("branch3x3", 384, 3, 2)], double], "stride")


def grid_17(width: int) -> Block:
    """17 x 17, 768 wide: 1x1, 7x7 in two parts, 7x7 twice in two parts, pool."""
    twice: list[Row] = [
        ("branch7x7dbl_1", width, 1, 1),
        ("branch7x7dbl_2", width, (7, 1), 1),
        ("branch7x7dbl_3", width, (1, 7), 1),
        ("branch7x7dbl_4", width, (7, 1), 1),
        ("branch7x7dbl_5", 192, (1, 7), 1),
    ]
    once: list[Row] = [
        ("branch7x7_1", width, 1, 1),
        ("branch7x7_2", width, (1, 7), 1),
        ("branch7x7_3", 192, (7, 1), 1),
    ]
    return Block(768, [[("branch1x1", 192, 1, 1)], once, twice], "average", 192)


def to_grid_8() -> Block:
    """17 x 17 to 8 x 8."""
    long: list[Row] = [
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, (1, 7), 1),
        ("branch7x7x3_3", 192, (7, 1), 1),
        ("branch7x7x3_4", 192, 3, 2),
    ]
    return Block(768, [[("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)], long], "stride")


def grid_8(inputs: int, pool: str) -> Block:
    """8 x 8: 1x1, 3x3 forked, double 3x3 forked, pool."""
    fork: tuple[Row, Row] = (("branch3x3_2a", 384, (1, 3), 1), ("branch3x3_2b", 384, (3, 1), 1))
    far_fork: tuple[Row, Row] = (("branch3x3dbl_3a", 384, (1, 3), 1), ("branch3x3dbl_3b", 384, (3, 1), 1))
    chains: list[list[Row | tuple[Row, Row]]] = [
        [("branch1x1", 320, 1, 1)],
        [("branch3x3_1", 384, 1, 1), fork],
        [("branch3x3dbl_1", 448, 1, 1), ("branch3x3dbl_2", 384, 3, 1), far_fork],
    ]
    return Block(inputs, chains, pool, 192)


class Inception(nn.Module):
    """[N, 3, 299, 299], scaled to about [-1, 1] -> features [N, 2048] and a map [N, 192, 17, 17].

    The map is the first branch of the fourth 17 x 17 block, named `mixed_6/conv` in TensorFlow's graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = grid_35(192, 32), grid_35(256, 64), grid_35(288, 64)
        self.Mixed_6a, self.Mixed_6b = to_grid_17(288), grid_17(128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = grid_17(160), grid_17(160), grid_17(192)
        self.Mixed_7a = to_grid_8()
        self.Mixed_7b, self.Mixed_7c = grid_8(1280, "average"), grid_8(WIDTH, "max")
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        maps: Tensor = self.Mixed_6d.get_submodule("branch1x1")(x)
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3)), maps
