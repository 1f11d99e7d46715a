"""The VAE's decoder in one kernel per convolution, on the weights of diffusers' model.

The audio stays in channels-last layout. An activation is computed where its input is produced, and a residual is added
where it is stored, so nothing but convolutions reads or writes the audio between the layers.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

import torch
from torch import nn

_CAPABILITY: Final = (8, 0)
"""Oldest compute capability with bfloat16 arithmetic and shared memory for the blocks."""
WIDE_SHARED_MEMORY: Final = 160 * 1024
"""Bytes of shared memory per block from which the larger blocks of Hopper are used."""
_NARROWEST: Final = 16
"""Columns of the narrowest matrix that tensor cores multiply."""


def can_fuse(vae: Any) -> bool:
    """Whether the kernels can run on the VAE's device, in its dtype, at its sizes."""
    return (
        vae.device.type == "cuda"
        and vae.dtype == torch.bfloat16
        and torch.cuda.get_device_capability(vae.device) >= _CAPABILITY
        and find_spec("triton") is not None
        and knows(vae.decoder)
    )


def knows(decoder: Any) -> bool:
    """Whether the kernels compute what this architecture does: whole blocks of channels, and even strides."""
    return all(
        layer.in_channels % _NARROWEST == 0 and (isinstance(layer, nn.Conv1d) or layer.stride[0] % 2 == 0)
        for layer in decoder.modules()
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
    )


def lay_out(decoder: Any, *, by_tap: bool = True) -> None:
    """Store the weights in the order in which the kernels read them, or in PyTorch's; their values do not change."""
    for layer in decoder.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
            layer.weight.data = (
                _by_tap(layer).contiguous().permute(_BACK[type(layer)]) if by_tap else layer.weight.data.contiguous()
            )


_FORTH: Final[dict[type, tuple[int, int, int]]] = {nn.Conv1d: (2, 1, 0), nn.ConvTranspose1d: (2, 0, 1)}
_BACK: Final[dict[type, tuple[int, int, int]]] = {nn.Conv1d: (2, 1, 0), nn.ConvTranspose1d: (1, 2, 0)}


def _by_tap(layer: Any) -> torch.Tensor:
    """Weights of shape ``[taps, channels, out channels]``, a view."""
    weight: torch.Tensor = layer.weight.data.permute(_FORTH[type(layer)])
    return weight


def block_sizes(channels: int, out_channels: int, taps: int, stride: int, *, by_descriptor: bool) -> dict[str, int]:
    """Sizes of a block and launch options: of those tried on an H100 the fastest for each kind of layer.

    A convolution of one tap and an upsampling move more bytes than they compute: smaller blocks, more of them at once.
    Without descriptors every combination fits into the 99 KiB of shared memory of the smallest supported GPU.

    Args:
        channels: of the input.
        out_channels: of the result.
        taps: of the kernel.
        stride: above 1, a transposed convolution.
        by_descriptor: the device copies blocks by tensor descriptors.
    """
    t_block, k_block, warps = 128, 64, 8
    if taps == 1:
        # All of 128 channels in one block leave no loop, so nothing is prefetched and the memory is not exceeded.
        t_block, k_block = 64, 128 if channels == 128 else 64
    elif stride > 1:
        t_block, warps = (64, 8) if out_channels <= 128 else (128, 4)
    elif by_descriptor and out_channels > 128:
        t_block = 256
    return {
        "T_BLOCK": t_block,
        "N_BLOCK": min(128, max(_NARROWEST, _largest_power_of_two(out_channels))),
        "K_BLOCK": min(k_block, _largest_power_of_two(channels)),
        "num_warps": warps,
        "num_stages": 3,
    }


def _largest_power_of_two(number: int) -> int:
    """The largest that divides a number."""
    return number & -number


def copies_by_descriptor(device: torch.device) -> bool:
    """Whether the device copies blocks of tensors by itself (Hopper and later) and has the memory for large ones."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return False
    properties: Any = torch.cuda.get_device_properties(device)
    return bool(properties.shared_memory_per_block_optin >= WIDE_SHARED_MEMORY)


class FusedDecoder:
    """Decodes with diffusers' ``OobleckDecoder``, whose weights were laid out (``lay_out``).

    Args:
        decoder: the model, whose weights are read where they are.
        by_descriptor: let the device copy blocks by tensor descriptors; where it can, when not given.
    """

    def __init__(self, decoder: Any, *, by_descriptor: bool | None = None) -> None:
        from acestep.renderer import kernels

        self._kernels: Any = kernels
        self._decoder = decoder
        device = decoder.conv1.weight.device
        self._by_descriptor = copies_by_descriptor(device) if by_descriptor is None else by_descriptor

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Audio of one song.

        Args:
            latents: shape ``[1, channels, frames]``.

        Returns:
            Shape ``[1, 2, samples]``.
        """
        decoder = self._decoder
        blocks = list(decoder.block)
        x = latents[0].T.contiguous()
        _, x = self._convolve(decoder.conv1, x, activation=blocks[0].snake1)
        for block, behind in zip(blocks, [*(block.snake1 for block in blocks[1:]), decoder.snake1], strict=True):
            units = (block.res_unit1, block.res_unit2, block.res_unit3)
            hidden, x = self._upsample(block.conv_t1, x, units[0].snake1)
            for unit, following in zip(units, [*(unit.snake1 for unit in units[1:]), behind], strict=True):
                _, between = self._convolve(unit.conv1, x, activation=unit.snake2)
                # The sum replaces the unit's input; after the last unit of a block only its activation is needed.
                last = unit is units[-1]
                _, x = self._convolve(unit.conv2, between, activation=following, residual=hidden, stores_plain=not last)
        audio, _ = self._convolve(decoder.conv2, x)
        return audio.T.unsqueeze(0)

    def _convolve(
        self,
        layer: Any,
        x: torch.Tensor,
        *,
        activation: Any = None,
        residual: torch.Tensor | None = None,
        stores_plain: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A convolution that keeps the length; its result as it is, and activated."""
        frames = x.shape[0]
        plain = residual
        if plain is None:
            plain = x.new_empty(frames if activation is None else 0, layer.out_channels)
        activated = x.new_empty(0 if activation is None else frames, layer.out_channels)
        self._launch(
            layer,
            x,
            plain,
            activated,
            activation,
            rows=frames,
            first=-layer.padding[0],
            dilation=layer.dilation[0],
            STRIDE=1,
            TAPS=layer.kernel_size[0],
            HAS_RESIDUAL=residual is not None,
            STORES_PLAIN=stores_plain or activation is None,
        )
        return plain, activated

    def _upsample(self, layer: Any, x: torch.Tensor, activation: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """A transposed convolution; its result as it is, and activated."""
        frames, stride = x.shape[0], layer.stride[0]
        # One row more than frames: the last input reaches beyond its own samples.
        plain, activated = (x.new_empty((frames + 1) * stride, layer.out_channels) for _ in range(2))
        self._launch(
            layer,
            x,
            plain,
            activated,
            activation,
            rows=frames + 1,
            first=-1,
            dilation=1,
            STRIDE=stride,
            TAPS=2,
            HAS_RESIDUAL=False,
            STORES_PLAIN=True,
        )
        start = layer.padding[0]
        return plain[start : start + frames * stride], activated[start : start + frames * stride]

    def _launch(
        self,
        layer: Any,
        x: torch.Tensor,
        plain: torch.Tensor,
        activated: torch.Tensor,
        activation: Any,
        *,
        rows: int,
        first: int,
        dilation: int,
        **constants: Any,
    ) -> None:
        columns, channels = constants["STRIDE"] * layer.out_channels, layer.in_channels
        # A descriptor's block is inside of the weights of one tap.
        by_descriptor = self._by_descriptor and layer.out_channels >= _NARROWEST
        sizes = block_sizes(
            channels, layer.out_channels, constants["TAPS"], constants["STRIDE"], by_descriptor=by_descriptor
        )
        programs = -(-rows // sizes["T_BLOCK"]) * -(-columns // sizes["N_BLOCK"])
        # Weights that were laid out are not copied.
        weight = _by_tap(layer).contiguous()
        sources: tuple[Any, Any] = (x, weight)
        if by_descriptor:
            sources = (
                _described(x, sizes["T_BLOCK"], sizes["K_BLOCK"]),
                _described(weight.view(-1, layer.out_channels), sizes["K_BLOCK"], sizes["N_BLOCK"]),
            )
        # A pointer that is not read has to be some tensor.
        self._kernels.convolve[(programs,)](
            *sources,
            weight if layer.bias is None else layer.bias,
            plain,
            weight if activation is None else activation.alpha,
            weight if activation is None else activation.beta,
            plain,
            activated,
            x.shape[0],
            rows,
            first,
            dilation,
            CHANNELS=channels,
            OUT_CHANNELS=layer.out_channels,
            HAS_BIAS=layer.bias is not None,
            STORES_ACTIVATED=activation is not None,
            BY_DESCRIPTOR=by_descriptor,
            **constants,
            **sizes,
        )


def _described(tensor: torch.Tensor, *block: int) -> Any:
    """A descriptor of a contiguous matrix, for blocks of a size."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(tensor, list(block))
