"""A GPU that is not there: what a step would do on one, traced on any machine.

Inside ``FakeCUDA`` tensors on "cuda" have a shape and a dtype and no values, those on the CPU are
real.  Every operation on the device is written down, and with it each at which the host would have
waited for the device; such a question is answered with True or 1, and the trace goes on.

Autocast and autograd are torch's own, but for the engine of the backward pass, which wants a stream
of a card: :func:`backward` calls the same nodes in order.
"""

import contextlib
import sys
import traceback
from collections import Counter
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
# The host must know how many there are.
_COUNTED = ("nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "equal",
            "repeat_interleave.Tensor", "bincount", "histc", "argwhere")  # fmt: skip
_ASKED = ("_local_scalar_dense", "is_nonzero", "item")


@dataclass
class Trace:
    """What was done on the device."""

    waits: Counter = field(default_factory=Counter)
    """places at which the host waits, (operation, line of this project)."""
    float64: Counter = field(default_factory=Counter)
    """places that compute in float64 on the device."""
    flops: Counter = field(default_factory=Counter)
    """floating-point operations of products and attention, by (dtype, in a finite difference)."""
    bytes: Counter = field(default_factory=Counter)
    """bytes read and written by all other operations and products of batches, by name."""
    calls: Counter = field(default_factory=Counter)
    """calls by name, views left out."""


def _place():
    """The innermost line of the package that is being run."""
    for frame in reversed(traceback.extract_stack()):
        if "/ucgm/" in frame.filename and "/site-packages/" not in frame.filename:
            return f"{frame.filename.rsplit('/ucgm/')[-1]}:{frame.lineno}"
    return "?"


def _in_difference():
    """Whether a finite difference is being formed."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in ("difference_tangent", "finite_tangent", "prediction_tangent"):
            return True
        frame = frame.f_back
    return False


def _flash(q, k, v, *args, **kwargs):
    """The attention that CUDA would choose: fused where torch allows it and no mask is given."""
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        q, k, v = (x.to(half) for x in (q, k, v))
    if not torch.backends.cuda.flash_sdp_enabled() or args or kwargs:
        with torch.autocast("cuda", enabled=False):
            return _ATTENTION(q, k, v, *args, **kwargs)
    if q.dtype == torch.float32:
        out = aten._scaled_dot_product_efficient_attention(q, k, v, None, q.requires_grad)
        return out[0]
    return aten._scaled_dot_product_flash_attention(q, k, v)[0]


_ATTENTION = F.scaled_dot_product_attention


def _fit(grad, meta):
    """A gradient in the shape and dtype of what it is the gradient of, as the engine makes it."""
    grad = grad if grad.shape == meta.shape else grad.sum_to_size(meta.shape)
    return grad if grad.dtype == meta.dtype else grad.to(meta.dtype)


def _gradients(root, seed):
    """Gradient of every leaf, by its accumulating node; nodes run when all that use them have."""
    users, stack, seen = Counter(), [root], {root}
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                users[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    waiting, ready, leaves = {root: {0: seed}}, [root], {}
    while ready:
        node = ready.pop()
        given, metas = waiting.pop(node), node._input_metadata
        if type(node).__name__ == "AccumulateGrad":
            leaves[node.variable] = given[0]
            continue
        given = [_fit(given[i], m) if i in given else None for i, m in enumerate(metas)]
        with torch.no_grad():
            found = node(*given)
        found = found if isinstance(found, tuple) else (found,)
        for (user, place), grad in zip(node.next_functions, found, strict=True):
            if user is None:
                continue
            if grad is not None:
                sums, grad = waiting.setdefault(user, {}), _fit(grad, user._input_metadata[place])
                sums[place] = sums[place] + grad if place in sums else grad
            users[user] -= 1
            if not users[user] and user in waiting:
                ready.append(user)
    return leaves


def backward(loss):
    """``loss.backward()`` without the engine."""
    with torch.no_grad():
        for leaf, found in _gradients(loss.grad_fn, torch.ones_like(loss)).items():
            leaf.grad = found if leaf.grad is None else leaf.grad + found


def grad(loss, inputs, **_):
    """``torch.autograd.grad`` of a scalar and leaves, without the engine."""
    found = _gradients(loss.grad_fn, torch.ones_like(loss))
    return tuple(found.get(leaf) for leaf in inputs)


class _Mode(FakeTensorMode):
    def __deepcopy__(self, memo):
        return self  # copies of a network live on the same device


class FakeCUDA(TorchDispatchMode):
    """Everything that runs inside; ``trace`` is what was seen."""

    def __init__(self):
        super().__init__()
        self.fake = _Mode()
        self.trace = Trace()

    def __enter__(self):
        self.held = contextlib.ExitStack()
        if not torch.cuda.is_available():  # else the true one must not be left out
            torch._C._ensureCUDADeviceGuardSet()
            self.held.enter_context(mock.patch.object(torch.cuda, "_lazy_init", lambda: None))
        # A tensor of numbers is made on the host and then copied, where the mode sees it.
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self.held.callback(torch._C._set_only_lift_cpu_tensors, before)
        for target, name, value in (
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch.cuda, "manual_seed_all", lambda seed: None),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.Tensor, "pin_memory", lambda self: self),
            # A fake parameter cannot take its own place; networks are made in float32.
            (torch.nn.Module, "float", lambda self: self),
            (torch.Tensor, "backward", backward),
            (torch.autograd, "grad", grad),
            (F, "scaled_dot_product_attention", _flash),
        ):
            if hasattr(target, name):
                self.held.enter_context(mock.patch.object(target, name, value))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.held.close()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        fake = [x for x in given if isinstance(x, FakeTensor)]
        name = func.__name__.removesuffix(".default")
        if name == "device" and func.namespace == "prim":
            return fake[0].fake_device if fake else func(*args, **kwargs)
        device = kwargs.get("device")
        device = None if device is None else torch.device(device)
        if not fake and (device is None or device.type != "cuda"):
            return func(*args, **kwargs)
        answer = self._waiting(func, name, args, kwargs, given, fake)
        if answer is not None:
            return answer[0]
        if not func._schema.returns:  # a fused kernel changes what it is given
            return self._count(func, name, args, kwargs, fake, None)
        args, kwargs = tree_map(self._fake, (args, kwargs))
        with self.fake:
            out = func(*args, **kwargs)
        self._count(func, name, args, kwargs, fake, out)
        return out

    def _fake(self, x):
        plain = isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)
        return self.fake.from_tensor(x) if plain else x

    def _wait(self, name):
        self.trace.waits[name, _place()] += 1

    def _waiting(self, func, name, args, kwargs, given, fake):
        """Write down what the host waits for; the answer, where a fake tensor has none."""
        base = name.split(".")[0]
        if base in _ASKED:
            self._wait(base)
            dtype = fake[0].dtype
            return (True,) if dtype == torch.bool else (1.0 if dtype.is_floating_point else 1,)
        host = [x for x in given if not isinstance(x, FakeTensor)]
        if base in ("_to_copy", "copy_", "to"):
            blocking = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            device = kwargs.get("device")
            if fake and device is not None and device.type == "cpu":
                self._wait("copy to the host")
                return (torch.zeros(fake[0].shape, dtype=kwargs.get("dtype") or fake[0].dtype),)
            if base == "copy_" and not isinstance(args[0], FakeTensor):
                self._wait("copy to the host")
                return (args[0],)
            if host and blocking:
                self._wait("copy to the device")
        elif base.startswith("index") and any(x.ndim for x in host):
            self._wait(f"{base} by a tensor of the host")
        elif base in ("index", "index_put", "index_put_"):
            where = [i for i in args[1] if i is not None]
            masks = [i for i in where if i.dtype in (torch.bool, torch.uint8)]
            if masks:
                self._wait(f"{base} by a mask")
                if base != "index":
                    return (args[0],)
                return (self._empty((1, *args[0].shape[masks[0].ndim :]), args[0].dtype),)
        elif name in _COUNTED or base in _COUNTED:
            self._wait(base)
            shape = (1, fake[0].ndim) if base in ("nonzero", "argwhere") else (1,)
            return (True,) if base == "equal" else (self._empty(shape, fake[0].dtype),)
        return None

    def _empty(self, shape, dtype):
        with self.fake:
            return torch.zeros(shape, dtype=dtype, device=CUDA)

    def _count(self, func, name, args, kwargs, fake, out):
        outs = [x for x in tree_iter(out) if isinstance(x, FakeTensor)]
        if func.is_view or not outs and not fake:
            return
        trace = self.trace
        trace.calls[name] += 1
        if any(x.dtype == torch.float64 for x in (*outs, *fake)):
            trace.float64[name, _place()] += 1
        if func._overloadpacket in flop_registry:
            count = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
            trace.flops[fake[0].dtype, _in_difference()] += count
            if name != "bmm":  # many small ones, as of rotary positions: their bytes take the time
                return
        if name.startswith(("empty", "detach", "_unsafe_view", "lift_fresh", "alias")):
            return
        trace.bytes[name] += sum(x.numel() * x.element_size() for x in (*fake, *outs))
