"""A small VGG for 32×32 images: plain convolutions with batch norms, no shortcuts."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (16, 16, 32, 32, 64, 64)


class SmallVGG(nn.Module):
    """Three stages of two 3×3 convolutions, each stage ended by max pooling; average pool, linear."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for number, width in enumerate(WIDTHS):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            if number % 2:
                layers.append(nn.MaxPool2d(2))
            before = width
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits
