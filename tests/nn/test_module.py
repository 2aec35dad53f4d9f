"""`nn.Module`: registration, walking, state, conversion, replacement, hooks and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import tinytensor as tt
from tinytensor import nn


class Affine(nn.Module):
    """Every kind of part: parameters, an absent one, two buffers, children and plain attributes."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 3)
        self.scale = nn.Parameter(tt.ones(3))
        self.register_parameter("absent", None)
        self.register_buffer("count", tt.zeros(1))
        self.register_buffer("scratch", tt.ones(2), persistent=False)
        self.plain = tt.ones(4)
        self.parts = nn.ModuleList([nn.Linear(3, 1, bias=False), nn.Dropout(0.1)])

    def forward(self, x):
        return self.parts[0](self.inner(x) * self.scale)


class Tied(nn.Module):
    """One table under two names, as in a GPT with a tied head."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids))


def names(pairs):
    return [name for name, _ in pairs]


# --- registration and walking ---------------------------------------------------------------------


def test_parts_are_found_in_the_order_of_assignment():
    module = Affine()
    assert names(module.named_parameters()) == [
        "scale",
        "inner.weight",
        "inner.bias",
        "parts.0.weight",
    ]
    assert names(module.named_parameters(recurse=False)) == ["scale"]
    assert names(module.named_parameters(prefix="m"))[0] == "m.scale"
    assert names(module.named_buffers()) == ["count", "scratch"]
    assert names(module.named_modules()) == ["", "inner", "parts", "parts.0", "parts.1"]
    assert names(module.named_children()) == ["inner", "parts"]
    assert next(module.modules()) is module
    assert len(list(module.buffers())) == 2
    assert list(module.state_dict()) == [
        "scale",
        "count",
        "inner.weight",
        "inner.bias",
        "parts.0.weight",
    ]
    assert next(iter(module.state_dict(prefix="model."))) == "model.scale"


def test_parts_are_found_by_dotted_name():
    module = Affine()
    assert module.get_submodule("") is module
    assert module.get_submodule("parts.0") is module.parts[0]
    assert module.get_parameter("parts.0.weight") is module.parts[0].weight
    assert module.get_buffer("count") is module.count
    for get, name in [
        (module.get_submodule, "parts.7"),
        (module.get_parameter, "inner.gain"),
        (module.get_parameter, "count"),
        (module.get_buffer, "scale"),
    ]:
        with pytest.raises(AttributeError, match=name.split(".")[-1]):
            get(name)


def test_a_parameter_is_a_tensor_and_what_is_computed_from_it_is_not_a_parameter():
    data = tt.ones(2, 3)
    parameter = nn.Parameter(data)
    assert isinstance(parameter, tt.Tensor) and parameter.requires_grad and parameter.is_leaf
    assert parameter.data_ptr() == data.data_ptr()
    assert not nn.Parameter(data, requires_grad=False).requires_grad
    assert type(parameter * 2) is tt.Tensor
    assert type(parameter.detach()) is tt.Tensor
    assert repr(parameter).startswith("Parameter containing:\ntensor(")


def test_assignment_replaces_parts_and_refuses_other_things():
    module = Affine()
    module.scale = nn.Parameter(tt.zeros(3))
    assert names(module.named_parameters())[0] == "scale"  # the place in the order is kept
    module.absent = nn.Parameter(tt.zeros(1))
    assert "absent" in names(module.named_parameters())
    module.scale = None
    assert "scale" not in names(module.named_parameters())
    module.count = tt.ones(1)
    assert module.state_dict()["count"].item() == 1
    module.count = nn.Parameter(tt.ones(1))
    assert names(module.named_buffers()) == ["scratch"]
    del module.scratch
    assert names(module.named_buffers()) == []

    module = Affine()
    with pytest.raises(TypeError, match=r"Affine\.scale is a parameter.*nn\.Parameter"):
        module.scale = tt.ones(3)
    with pytest.raises(TypeError, match=r"Affine\.inner is a module"):
        module.inner = 3
    with pytest.raises(TypeError, match=r"Affine\.count is a buffer"):
        module.count = 3


def test_registration_by_name_refuses_bad_names_and_things():
    module = Affine()
    with pytest.raises(ValueError, match="already"):
        module.register_buffer("plain", tt.ones(1))
    with pytest.raises(ValueError, match="already"):
        module.add_module("forward", nn.Identity())
    with pytest.raises(ValueError, match=r"contain '\.'"):
        module.register_parameter("a.b", nn.Parameter(tt.ones(1)))
    with pytest.raises(TypeError, match="must be a string"):
        module.add_module(3, nn.Identity())
    with pytest.raises(TypeError, match=r"nn\.Parameter, not Tensor"):
        module.register_parameter("c", tt.ones(1))
    with pytest.raises(TypeError, match=r"nn\.Module, not Tensor"):
        module.add_module("c", tt.ones(1))
    with pytest.raises(TypeError, match="must be a tensor, not list"):
        module.register_buffer("c", [1.0])
    module.add_module("last", nn.Identity())
    module.register_buffer("count", tt.ones(2))
    assert module.count.shape == (2,)


@pytest.mark.parametrize(
    "part",
    [lambda: nn.Parameter(tt.ones(1)), lambda: nn.Linear(1, 1)],
    ids=["parameter", "module"],
)
def test_a_forgotten_super_init_is_named(part):
    class Forgetful(nn.Module):
        def __init__(self):
            self.part = part()

    with pytest.raises(AttributeError, match=r"Forgetful: call super\(\).__init__\(\)"):
        Forgetful()


def test_a_missing_attribute_and_a_missing_forward_are_named():
    with pytest.raises(AttributeError, match="'Affine' object has no attribute 'gain'"):
        Affine().gain  # noqa: B018
    with pytest.raises(NotImplementedError, match="Module has no forward"):
        nn.Module()(1)


# --- shared parts ---------------------------------------------------------------------------------


def test_a_shared_parameter_counts_once_and_is_saved_under_all_its_names():
    module = Tied()
    assert names(module.named_parameters()) == ["table.weight"]
    assert names(module.named_parameters(remove_duplicate=False)) == ["table.weight", "head.weight"]
    saved = module.state_dict()
    assert list(saved) == ["table.weight", "head.weight"]
    assert saved["table.weight"].data_ptr() == saved["head.weight"].data_ptr()

    shared = nn.Linear(2, 2)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    assert len(list(twice.parameters())) == 2
    assert len(list(twice.modules())) == 3
    assert len(list(twice.children())) == 2
    assert len(names(twice.named_modules(remove_duplicate=False))) == 4
    assert len(twice) == 3


def test_a_shared_parameter_collects_the_gradients_of_all_its_uses():
    module = Tied().double()
    ids = tt.tensor([1, 3, 3])
    module(ids).square().sum().backward()
    weight = module.table.weight.detach().numpy()
    logits = weight[ids.numpy()] @ weight.T
    expected = 2 * logits.T @ weight[ids.numpy()]
    np.add.at(expected, ids.numpy(), 2 * logits @ weight)
    np.testing.assert_allclose(module.table.weight.grad.numpy(), expected, rtol=1e-12)


def test_a_deep_copy_keeps_what_is_shared_shared_and_nothing_in_common():
    module = Tied()
    module.eval()
    other = copy.deepcopy(module)
    assert other.head.weight is other.table.weight
    assert isinstance(other.head.weight, nn.Parameter) and other.head.weight.requires_grad
    assert not other.training
    with tt.no_grad():
        other.head.weight.zero_()
    assert module.head.weight.abs().sum().item() > 0
    frozen = copy.deepcopy(Affine().requires_grad_(False))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert names(frozen.named_buffers()) == ["count", "scratch"]


# --- modes, gradients, conversion -----------------------------------------------------------------


def test_modes_reach_every_module():
    module = Affine()
    assert module.training and module.parts[1].training
    assert module.eval() is module
    assert not any(m.training for m in module.modules())
    module.train()
    assert all(m.training for m in module.modules())
    with pytest.raises(ValueError, match="True or False, not 'yes'"):
        module.train("yes")


def test_gradients_are_forgotten_or_filled_with_zeros():
    module = Affine()
    module(tt.ones(2, 2)).sum().backward()
    memory = module.scale.grad.data_ptr()
    module.zero_grad(set_to_none=False)
    assert module.scale.grad.data_ptr() == memory
    assert all(p.grad.abs().sum().item() == 0 for p in module.parameters())
    module.zero_grad()
    assert all(p.grad is None for p in module.parameters())
    module.requires_grad_(False)
    assert not module(tt.ones(2, 2)).requires_grad


def test_apply_visits_children_first():
    visited = []
    module = Affine()
    assert module.apply(lambda m: visited.append(type(m).__name__)) is module
    assert visited == ["Linear", "Linear", "Dropout", "ModuleList", "Affine"]


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda m: m.double(), tt.float64),
        (lambda m: m.bfloat16(), tt.bfloat16),
        (lambda m: m.to(tt.float64), tt.float64),
        (lambda m: m.to("cpu", tt.float64), tt.float64),
        (lambda m: m.to(dtype=tt.float64, device="cpu"), tt.float64),
        (lambda m: m.to(tt.zeros(1, dtype=tt.float64)), tt.float64),
        (lambda m: m.double().float(), tt.float32),
        (lambda m: m.cpu(), tt.float32),
    ],
)
def test_conversion_keeps_the_parameters_and_changes_their_numbers(convert, dtype):
    module = Affine()
    module.register_buffer("ids", tt.arange(3))
    before = dict(module.named_parameters())
    module(tt.ones(2, 2)).sum().backward()
    assert convert(module) is module
    for name, parameter in module.named_parameters():
        assert parameter is before[name]
        assert parameter.dtype == dtype and parameter.grad.dtype == dtype
    assert module.count.dtype == dtype
    assert module.ids.dtype == tt.int64
    module.zero_grad()
    module(tt.ones(2, 2, dtype=dtype)).sum().backward()
    assert module.scale.grad.dtype == dtype


def test_conversion_keeps_shared_buffers_shared_and_refuses_integers():
    module = nn.Sequential(nn.Identity(), nn.Identity())
    mask = tt.ones(2)
    module[0].register_buffer("mask", mask)
    module[1].register_buffer("mask", mask)
    module.double()
    assert module[0].mask is module[1].mask and module[0].mask.dtype == tt.float64
    with pytest.raises(TypeError, match="must be floating-point, not int64"):
        module.to(tt.long)


# --- state dicts ----------------------------------------------------------------------------------


def test_a_state_dict_shares_memory_and_loads_in_place():
    source, target = Affine(), Affine()
    state = source.state_dict()
    assert state["scale"].data_ptr() == source.scale.data_ptr()
    assert not state["scale"].requires_grad
    assert source.state_dict(keep_vars=True)["scale"] is source.scale
    memory = target.scale.data_ptr()
    with tt.no_grad():
        source.scale.fill_(7.0)
    result = target.load_state_dict(state)
    assert result.missing_keys == [] and result.unexpected_keys == []
    assert target.scale.data_ptr() == memory and target.scale.requires_grad
    for name, value in target.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name].numpy())


def test_loading_casts_and_takes_arrays():
    module = nn.Linear(2, 1)
    weights = {"weight": np.array([[1.5, 2.5]]), "bias": tt.tensor([1.0], dtype=tt.bfloat16)}
    module.load_state_dict(weights)
    assert module.weight.dtype == tt.float32 and module.weight.tolist() == [[1.5, 2.5]]
    assert module.bias.tolist() == [1.0]


def test_loading_lists_every_problem_at_once_and_changes_nothing():
    module = Affine()
    before = {name: value.numpy().copy() for name, value in module.state_dict().items()}
    state = {name: value.clone() for name, value in Affine().state_dict().items()}
    del state["inner.bias"], state["count"]
    state["inner.gain"] = tt.ones(9)
    state["scale"] = tt.ones(3, 1)
    state["parts.0.weight"] = "a string"
    with pytest.raises(RuntimeError) as caught:
        module.load_state_dict(state)
    message = str(caught.value)
    assert "do not fit this Affine" in message
    assert "2 missing:\n    count (1,)\n    inner.bias (3,)" in message
    assert "1 unexpected:\n    inner.gain (9,)" in message
    assert "2 of another shape" in message
    assert "scale is (3,) here but (3, 1) there" in message
    assert "parts.0.weight is (1, 3) here but a str there" in message
    for name, value in module.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])

    with pytest.raises(RuntimeError, match="scale is"):  # a wrong shape is wrong even so
        module.load_state_dict(state, strict=False)
    del state["scale"], state["parts.0.weight"]
    result = module.load_state_dict(state, strict=False)
    assert result.missing_keys == ["scale", "count", "inner.bias", "parts.0.weight"]
    assert result.unexpected_keys == ["inner.gain"]
    with pytest.raises(TypeError, match="expected a dict of tensors, got list"):
        module.load_state_dict([])


def test_one_name_of_a_shared_tensor_is_enough_to_load_it():
    module = Tied()
    module.load_state_dict({"table.weight": tt.ones(5, 4)})
    assert module.head.weight.sum().item() == 20


# --- replacing ------------------------------------------------------------------------------------


def test_replaced_swaps_parameters_and_buffers_for_a_while():
    module = Affine()
    scale, count = module.scale, module.count
    with module.replaced({"scale": tt.zeros(3), "count": tt.ones(1)}):
        assert module(tt.ones(1, 2)).item() == 0
        assert module.count.item() == 1
    assert module.scale is scale and module.count is count
    with pytest.raises(ZeroDivisionError), module.replaced({"scale": tt.zeros(3)}):
        raise ZeroDivisionError
    assert module.scale is scale

    for tensors, error, sentence in [
        ({"gain": tt.ones(1), "inner.a": tt.ones(1)}, ValueError, r"buffer named gain, inner\.a;"),
        ({"scale": 3}, TypeError, "scale can only be replaced by a tensor, not int"),
    ]:
        with pytest.raises(error, match=sentence), module.replaced(tensors):
            pass


def test_replaced_swaps_a_shared_tensor_under_all_its_names():
    module = Tied()
    new = tt.ones(5, 4)
    with module.replaced({"head.weight": new}):
        assert module.table.weight is new and module.head.weight is new
    different = {"head.weight": new, "table.weight": tt.zeros(5, 4)}
    with pytest.raises(ValueError, match="shares its tensor"), module.replaced(different):
        pass
    assert module.table.weight is module.head.weight

    shared = nn.Linear(1, 1)
    twice = nn.Sequential(shared, shared)
    original = shared.weight
    with twice.replaced({"0.weight": tt.ones(1, 1)}):
        assert twice[1].weight is not original
    assert shared.weight is original


def test_functional_call_makes_a_module_a_function_of_its_parameters():
    module = Tied().double()
    ids = tt.tensor([0, 2])
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters):
        return tt.func.functional_call(module, parameters, (ids,)).square().sum()

    gradient = tt.func.grad(loss)(parameters)["table.weight"]
    module(ids).square().sum().backward()
    np.testing.assert_allclose(gradient.numpy(), module.table.weight.grad.numpy(), rtol=1e-12)


# --- hooks and showing ----------------------------------------------------------------------------


def test_hooks_see_and_may_replace_inputs_and_outputs():
    module = nn.Linear(2, 1)
    seen = []
    before = module.register_forward_pre_hook(lambda m, args: seen.append((m, args)))
    after = module.register_forward_hook(lambda m, args, output: output * 0)
    x = tt.ones(3, 2)
    assert module(x).abs().sum().item() == 0
    assert seen[0][0] is module and seen[0][1][0] is x
    before.remove()
    after.remove()
    module.register_forward_pre_hook(lambda m, args: args[0] * 0)
    np.testing.assert_array_equal(module(x).detach().numpy(), np.full((3, 1), module.bias.item()))
    assert len(seen) == 1


def test_a_module_shows_its_tree():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)
            self.mlp = nn.Sequential(nn.Linear(4, 8, bias=False), nn.GELU("tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 4, padding_idx=0)
            self.blocks = nn.ModuleList([Block(), Block(), nn.Dropout(0.5)])
            self.empty = nn.ModuleList()

        def extra_repr(self):
            return "width=4"

    assert repr(nn.ReLU()) == "ReLU()"
    assert (
        repr(Model())
        == """Model(
  width=4
  (table): Embedding(5, 4, padding_idx=0)
  (blocks): ModuleList(
    (0-1): 2 x Block(
      (norm): LayerNorm((4,), eps=1e-05, elementwise_affine=True)
      (mlp): Sequential(
        (0): Linear(in_features=4, out_features=8, bias=False)
        (1): GELU(approximate='tanh')
      )
    )
    (2): Dropout(p=0.5)
  )
  (empty): ModuleList()
)"""
    )


def test_parameters_and_modules_come_in_the_order_of_their_names():
    inner = nn.Linear(2, 2)
    model = nn.Sequential(inner, nn.Sequential(nn.LayerNorm(2), inner), nn.Linear(2, 2))
    model.extra = nn.Parameter(tt.ones(2))
    model[2].weight = inner.weight
    named = [p for _, p in model.named_parameters()]
    assert [id(p) for p in model.parameters()] == [id(p) for p in named]
    assert list(model.modules()) == [m for _, m in model.named_modules()]
    assert [id(p) for p in model.parameters(recurse=False)] == [id(model.extra)]
    del model.extra
    assert len(list(model.parameters())) == len(named) - 1  # nothing is remembered
