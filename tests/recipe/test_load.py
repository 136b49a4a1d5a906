from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dllm_rl.errors import RecipeError
from dllm_rl.recipe.load import load_recipe, recipe_file

VRPO: dict[str, Any] = {
    "algorithm": {"type": "vrpo"},
    "model": {"path": "some/model"},
    "data": {"path": "pairs.jsonl"},
    "output": "runs/x",
}
GRPO: dict[str, Any] = {**VRPO, "algorithm": {"type": "diffu_grpo"}, "reward": "mine.py:f", "rollout": {}}


def refusal(base: Any, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(base, overrides)
    return str(caught.value)


def write(folder: Path, text: str, name: str = "x.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "algorithm.num_drawz=3",
            "algorithm.num_drawz: unknown key. Did you mean num_draws? Keys: type, beta, num_draws, corruption, ",
        ),
        (
            "algorithm.corruption={type: bernoulli, flor: 1}",
            "algorithm.corruption.flor: unknown key. Did you mean floor?",
        ),
        ("algorithm.corruption={}", "algorithm.corruption.type: missing. One of: fixed_count, bernoulli, "),
        ("algorithm.type=vrppo", "algorithm.type: unknown vrppo. Did you mean vrpo? One of: "),
        ("algorithm={}", "algorithm.type: missing. One of: "),
        ("algorithm=vrpo", "algorithm: found 'vrpo', expected keys with values"),
        ("algorithm.num_draws='3'", "algorithm.num_draws: found '3', expected a valid integer"),
        ("algorithm.num_draws=2.5", "algorithm.num_draws: found 2.5, expected a valid integer"),
        ("algorithm.beta=0", "algorithm.beta: found 0, expected greater than 0"),
        ("eval={tasks: [a], temperature: .inf}", "eval.temperature: found inf, expected a finite number"),
        ("dat.path=x", "dat: unknown key. Did you mean data? Keys: algorithm, model, data, "),
        ("model={}", "model.path: missing. Hub id or folder of the model, or a procedural one such as toy:llada."),
        ("model.dtype=bfloat", "model.dtype: unknown bfloat. Did you mean bfloat16? One of: auto, float32, "),
        (
            "model.lora.alpha=3",
            "model.lora.alpha: unknown key. Did you mean lora_alpha? Keys: those of peft.LoraConfig",
        ),
        ("model.lora.r=big", "model.lora.r: found 'big', expected int"),
        ("model.lora={r: 8, lora_dropout: 0.1}", "model.lora.lora_dropout: must be 0 for vrpo"),
        ("model.quantization=nf4", "model: quantized weights cannot be trained"),
        (
            "train.learning_rat=1",
            "train.learning_rat: unknown key. Did you mean learning_rate? Keys: those of transformers",
        ),
        ("train.views_per_fwd=1", "train.views_per_fwd: unknown key. Did you mean views_per_forward?"),
        ("train.learning_rate='1e-6'", "train.learning_rate: found '1e-6', expected float"),
        ("train.bf16=no", "train.bf16: found 'no', expected bool"),
        ("train.max_steps=true", "train.max_steps: found True, expected int"),
        ("train.output_dir=x", "train.output_dir: not set here: the top-level key output"),
        ("train.eval_strategy=no", "train.eval_strategy: not set here: eval.every"),
        ("train.eval_steps=5", "train.eval_steps: not set here: eval.every"),
        ("train.stuck_after=0", "train.stuck_after: found 0, expected greater than 0"),
        ("train.stop_at_grad_norm=-1", "train.stop_at_grad_norm: found -1, expected greater than 0"),
        ("train.stop_at_log_ratio=3", "train.stop_at_log_ratio: vrpo does not compare with the weights that wrote"),
        ("train.views_per_forward=0", "train.views_per_forward: found 0, expected greater than or equal to 1"),
        ("reward=mine.py:f", "reward: vrpo learns from pairs: remove this section"),
        ("rollout.steps=8", "rollout: vrpo learns from pairs: remove this section"),
        ("eval.every=5", "eval.tasks: missing."),
        ("eval.tasks=[]", "eval.tasks: found [], "),
        ("eval={tasks: [a, b], path: x}", "eval: path serves a single task; use paths"),
        ("eval={tasks: [a], paths: {b: x}}", "eval: paths names b, which is not among the tasks: a"),
        (
            "eval={tasks: [a], gen_length: 256, block_length: 30}",
            "eval: gen_length 256 is not a multiple of block_length",
        ),
        (
            "eval={tasks: [a], gen_length: 64, block_length: 32, steps: 9}",
            "eval: steps 9 cannot be shared equally by 2",
        ),
        (
            "eval={tasks: [a], cache: prefix}",
            "eval.cache: not set here: through an approximate cache a rollout's ",
        ),
        ("output=null", "output: found None, expected a valid string"),
    ],
)
def test_a_mistake_takes_one_line_that_says_where_and_what_to_do(override: str, message: str) -> None:
    found = refusal(VRPO, override)
    assert found.startswith(f"recipe: {message}") and "\n" not in found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("train..x=3", "expected key.path=value"),
        ("model.path.x=1", "model.path is 'some/model', which has no keys; give the whole of it, as model.path={"),
        ("output=[", "not valid YAML"),
    ],
)
def test_a_wrong_override_names_itself(override: str, message: str) -> None:
    found = refusal(VRPO, override)
    assert "override" in found and message in found and "\n" not in found


def test_every_mistake_is_told_at_once() -> None:
    assert len(refusal(VRPO, "model.dtyp=x", "train.lr=1", "algorithm.betta=1").splitlines()) == 3


@pytest.mark.parametrize("section", ["reward", "rollout"])
def test_a_method_that_samples_needs_a_reward_and_a_rollout(section: str) -> None:
    assert refusal(GRPO, f"{section}=null") == f"recipe: {section}: diffu_grpo samples its data: add this section"


def test_a_method_that_imitates_a_sampler_takes_no_reward() -> None:
    imitation = {**GRPO, "algorithm": {"type": "planner_imitation"}}
    assert refusal(imitation) == (
        "recipe: reward: planner_imitation learns from what a sampler does, whatever it is worth: remove this section"
    )
    assert load_recipe(imitation, ["reward=null"]).reward is None
    found = refusal(imitation, "reward=null", "rollout=null")
    assert found == "recipe: rollout: planner_imitation samples its data: add this section"


def test_overrides_reach_where_nothing_was_and_the_last_one_holds() -> None:
    recipe = load_recipe(VRPO, ["train.learning_rate=1e-6", "train.max_steps=5", "train.max_steps=7", "output=no"])
    assert recipe.train.arguments == {"learning_rate": 1e-6, "max_steps": 7}
    assert recipe.output == "no"


def test_a_recipe_given_as_a_dict_is_left_alone() -> None:
    load_recipe(GRPO, ["rollout.steps=8", "model.path=other"])
    assert GRPO["rollout"] == {} and VRPO["model"] == {"path": "some/model"}


@pytest.mark.parametrize("reward", ["mine.py:f", ["mine.py:f"], {"functions": ["mine.py:f"]}])
def test_reward_shorthand(reward: Any) -> None:
    recipe = load_recipe({**GRPO, "reward": reward})
    assert recipe.reward is not None and recipe.reward.functions == ["mine.py:f"]


def test_reward_weights_match_functions() -> None:
    assert "2 weights for 1 functions" in refusal(GRPO, "reward={functions: [a.py:f], weights: [1.0, 2.0]}")


def test_dropout_is_allowed_where_nothing_is_compared() -> None:
    load_recipe({**VRPO, "algorithm": {"type": "sft"}}, ["model.lora={r: 8, lora_dropout: 0.1}"])


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(VRPO).output = "elsewhere"  # type: ignore[misc]


MINIMAL = "algorithm: {type: sft}\nmodel: {path: m}\ndata: {path: d}\noutput: o\n"


@pytest.mark.parametrize("head", ["---\n", "# a comment\n\n  # another\n--- # the recipe\n"])
def test_the_marker_may_follow_comments(tmp_path: Path, head: str) -> None:
    assert load_recipe(write(tmp_path, head + MINIMAL)).output == "o"


@pytest.mark.parametrize("head", ["", "# a comment\n"])
def test_a_recipe_without_the_marker_is_refused(tmp_path: Path, head: str) -> None:
    found = refusal(write(tmp_path, head + MINIMAL))
    assert "put a line with --- before it" in found and f"line {1 + len(head.splitlines())}" in found


def test_without_the_marker_a_recipe_could_pass_for_python() -> None:
    """The reason for the rule: annotations of names are not looked up in what they annotate, so this does nothing."""
    exec('algorithm: {"type": "sft"}\noutput: "o"\n', {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "distributed_type: MULTI_GPU\nnum_processes: 2\n",
            "not a recipe: its keys are distributed_type, num_processes",
        ),
        ("- 1\n- 2\n", "not a recipe: it holds list"),
        ("just text\n", "not a recipe: it holds str"),
        ("", "not a recipe: it holds NoneType"),
        ("{}", "not a recipe: its keys are none"),
    ],
)
def test_a_foreign_file_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    found = refusal(file)
    assert found.startswith(f"{file}: {message}") and "\n" not in found


def test_a_missing_file_and_a_binary_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.yaml").endswith("no.yaml: no such file")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.json").write_text("{}")
    assert refusal(tmp_path / "run").endswith(f"run: a folder of a run; its recipe is {tmp_path / 'run/recipe.json'}")
    binary = tmp_path / "x.yaml"
    binary.write_bytes(b"---\n\xff\xfe")
    assert "not text in UTF-8" in refusal(binary)


def test_a_message_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "---\n" + MINIMAL)
    assert refusal(file, "model.dtyp=x").startswith(f"{file}: model.dtyp: unknown key. Did you mean dtype?")


def test_shipped_recipes_go_by_their_names_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
    assert recipe_file("quickstart") == recipe_file("recipes/quickstart.yaml") == shipped
    assert load_recipe("quickstart") == load_recipe(shipped)
    with pytest.raises(RecipeError, match="nothing: no such file"):
        load_recipe("nothing")
