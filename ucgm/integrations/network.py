"""A diffusers transformer as a network of the native sampler.

    F(x_t, t, y) = transformer(x_t, timestep(t), conditioning of y)

with the labels of a class-conditional model, or with y the row of a table of text embeddings: the
last row is then that of the empty prompt, which makes it the null label, and :class:`ucgm.Guided`
is guidance between prompts as it is between classes.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

# What the model is given at time t, where it is not 1000 t.
_TIMESTEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "FluxTransformer2DModel": lambda t: t,  # multiplied by 1000 inside
    "DiTTransformer2DModel": lambda t: 1000.0 * t - 1.0,  # the index of a discrete level
}


class DiffusersNetwork:
    """A transformer of diffusers under the contract of our networks.

    The transport that goes with it is :class:`ucgm.Linear` for flow matching models (SD3, Flux) and
    :class:`ucgm.DiscreteVP` for models of discrete noise levels (DiT).

    Args:
        transformer: for example SD3Transformer2DModel, FluxTransformer2DModel (on packed latents
            (B, tokens, channels)) or DiTTransformer2DModel.
        table: keyword -> tensor with one row per condition; row y goes to the sample with label y.
            Without a table y itself is passed as ``class_labels``.
        fixed: keyword -> value that all samples share, such as ``txt_ids`` and ``img_ids``.
        timestep: what the model is given at times t; by the class of the model when None.
    """

    def __init__(
        self,
        transformer: nn.Module,
        table: Mapping[str, Tensor] | None = None,
        fixed: Mapping[str, Any] | None = None,
        timestep: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.transformer, self.table, self.fixed = transformer, dict(table or {}), dict(fixed or {})
        self.timestep = timestep or _TIMESTEPS.get(type(transformer).__name__, lambda t: 1000.0 * t)
        rows = {len(rows) for rows in self.table.values()}
        if len(rows) > 1:
            raise ValueError(f"the tensors of the table have different numbers of rows: {rows}")
        last = (rows.pop() if rows else 1) - 1
        config: Any = getattr(transformer, "config", {})
        self.num_classes = last if self.table else config.get("num_embeds_ada_norm")

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, s: Tensor | None = None) -> Tensor:
        """The prediction at x (B, C, H, W), t, y, s (B,), without a learned variance."""
        if s is not None:
            raise ValueError(
                "a diffusers transformer has one time: choose another solver than jump"
            )
        condition = {key: rows[y] for key, rows in self.table.items()}
        condition |= self.fixed if self.table else {**self.fixed, "class_labels": y}
        dtype = next(self.transformer.parameters()).dtype
        output = self.transformer(
            hidden_states=x.to(dtype), timestep=self.timestep(t), return_dict=False, **condition
        )[0]
        if output.ndim == 4 and output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]
        return output
