"""
Attention over a packed row, group by group: causal over the prompt, then all rollouts at once, each over the prompt
and itself. No mask of T x T is built, so long completions cost no extra.

It is registered beside the model's own implementation, which handles all other calls.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .layout import Group, Layout

_PREFIX = "shared_prefix_"


def install_attention(model: PreTrainedModel) -> None:
    """
    Let the decoder attend over packed rows in calls with a `shared_prefix` layout.

    The decoder uses `sdpa` or `flash_attention_2`. Other calls and the vision tower are unchanged.
    """
    configs = {id(part.config): part.config for part in model.get_decoder().modules() if hasattr(part, "config")}
    for config in configs.values():
        base = config._attn_implementation
        if not base.startswith(_PREFIX):
            # the internal field, since the setter also changes other parts of the model
            config._attn_implementation_internal = _register(base)


def base_implementation(name: str) -> str:
    """Return the name of the implementation from before [`install_attention`]."""
    return name.removeprefix(_PREFIX)


def _register(base: str) -> str:
    name, attend = _PREFIX + base, ALL_ATTENTION_FUNCTIONS[base]

    def attention(module, query, key, value, attention_mask, shared_prefix: Layout | None = None, **kwargs):
        if shared_prefix is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        return grouped_attention(module, query, key, value, shared_prefix, **kwargs), None

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> torch.Tensor:
    """
    Attend over a packed row.

    Args:
        query (`torch.Tensor` of shape `(1, H, T, D)`):
            Queries of H heads.
        key, value (`torch.Tensor` of shape `(1, H_kv, T, D)`):
            Keys and values of H_kv heads, of which H is a multiple.
        layout ([`Layout`]):
            Groups of the row.

    Returns:
        `torch.Tensor` of shape `(1, T, H, D)`
    """
    outputs = []
    options = {"dropout": dropout, "scaling": scaling}
    for group in layout.groups:
        split = group.start + group.prefix
        if group.prefix:
            prompt = [x[:, :, group.start : split] for x in (query, key, value)]
            outputs.append(sdpa_attention_forward(module, *prompt, None, is_causal=True, **options)[0])
        if any(group.segments):
            outputs.append(_attend_segments(module, query, key, value, group, options))
    return torch.cat(outputs, dim=1)


def _attend_segments(module, query, key, value, group: Group, options: dict) -> torch.Tensor:
    """Attend from the rollouts of one group to its prompt and their own past: (1, sum of their lengths, H, D)."""
    lengths = [length for length in group.segments if length]
    longest, count = max(lengths), len(lengths)
    split = group.start + group.prefix
    ragged = any(length != longest for length in lengths)
    if ragged:
        # Right-padded to the longest, with any token: the causal mask hides it.
        steps = torch.arange(longest, device=query.device)
        sizes = torch.tensor(lengths, device=query.device).unsqueeze(1)
        starts = split + sizes.cumsum(0) - sizes
        rows = (starts + torch.minimum(steps, sizes - 1)).flatten()
        parts = [x[0].index_select(1, rows) for x in (query, key, value)]
    else:
        parts = [x[0, :, split : group.end] for x in (query, key, value)]
    own = [part.unflatten(1, (count, longest)).transpose(0, 1) for part in parts]  # (count, H, longest, D)
    shared = [x[:, :, group.start : split].expand(count, -1, -1, -1) for x in (key, value)]
    keys, values = (torch.cat([left, right], dim=2) for left, right in zip(shared, own[1:], strict=True))
    mask = torch.ones(longest, group.prefix + longest, dtype=torch.bool, device=query.device).tril(group.prefix)
    output = sdpa_attention_forward(module, own[0], keys, values, mask[None, None], is_causal=False, **options)[0]
    output = output.flatten(0, 1)  # (count * longest, H, D)
    if ragged:
        output = output[(steps < sizes).flatten()]
    return output.unsqueeze(0)
