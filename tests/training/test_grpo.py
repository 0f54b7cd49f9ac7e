"""Sampled training over TRL: the prompts of inference, rewards that fit, learning, and resuming with nothing lost."""

from __future__ import annotations

import importlib.util
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from r1_rerank.checkpoint import BaseModelCard
from r1_rerank.engines.tokenization import ChatTokenizer
from r1_rerank.errors import CheckpointError, InputError
from r1_rerank.prompts import ANSWER_CLOSE, render_answer
from r1_rerank.rows import Row
from r1_rerank.strategies import ALPHABET
from r1_rerank.training.generation import generation_arguments
from r1_rerank.training.grpo import policy_trainer, stage_rewards, train_policy
from r1_rerank.training.precision import mark_precision
from r1_rerank.training.prompting import Prompts
from r1_rerank.training.questions import Questions
from r1_rerank.training.recipe import PolicyStage, RankerSettings
from r1_rerank.training.resuming import last_checkpoint
from r1_rerank.training.traces import as_it_was

GROUP = 4


def ask(**settings: Any) -> Questions:
    return Questions(RankerSettings(**settings).card(BaseModelCard(name="toy", sha256=None)))


def stage_of(**settings: Any) -> PolicyStage:
    values: dict[str, Any] = {
        "name": "toy",
        "method": "grpo",
        "examples": 8,
        "batch": 2,
        "group": GROUP,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "warmup": 0,
        "logging_every": 1,
        "save_every": 2,
    }
    return PolicyStage(**{**values, **settings})


def adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))


def log_of(folder: Path) -> list[dict[str, Any]]:
    last = last_checkpoint(folder)
    assert last is not None
    lines: list[dict[str, Any]] = json.loads((Path(last) / "trainer_state.json").read_text())["log_history"]
    return [line for line in lines if "reward" in line]


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize(("bos", "turn"), [(False, ""), (True, ""), (True, "<think>\n")])
@pytest.mark.parametrize("thinking", [0, 16])
def test_the_policy_reads_the_prompt_of_inference(
    make_tokenizer: Any,
    make_model: Any,
    make_row: Any,
    tmp_path: Path,
    method: str,
    bos: bool,
    turn: str,
    thinking: int,
) -> None:
    tokenizer = make_tokenizer(bos=bos, turn=turn)
    questions, rows = ask(thinking=thinking), [make_row(number) for number in range(8)]
    trainer = policy_trainer(
        make_model(tokenizer),
        tokenizer,
        mixture=rows,
        questions=questions,
        stage=stage_of(method=method),
        folder=tmp_path,
    )
    read, _, _ = trainer._tokenize_prompts(list(trainer.train_dataset["prompt"]))
    chat = ChatTokenizer(tokenizer)
    for row, tokens in zip(rows, read, strict=True):
        messages = questions.first(row).messages
        assert list(tokens) == chat.prompt(messages, thinking=thinking > 0, constrain=not thinking)
        assert list(tokens).count(tokenizer.convert_tokens_to_ids("<s>")) == bos
    for prefill in trainer.train_dataset["prefill"]:
        assert prefill.strip() == ("<think>" if thinking else prefill.strip())
        assert prefill.endswith("<answer>[") or thinking


def test_a_tokenizer_that_would_cut_the_answer_is_refused(make_tokenizer: Any) -> None:
    with pytest.raises(CheckpointError, match="cuts answers"):
        Prompts(ask(), make_tokenizer(special=("<answer>",)))


def test_a_tokenizer_that_adds_what_its_template_does_not_write_is_refused(make_tokenizer: Any, make_row: Any) -> None:
    from tokenizers import processors

    tokenizer = make_tokenizer()
    ending = processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    tokenizer.backend_tokenizer.post_processor = ending
    with pytest.raises(CheckpointError, match="adds special tokens"):
        Prompts(ask(), tokenizer).dataset([make_row(0)])


def test_labels_that_are_not_one_token_are_refused(
    make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[B"])
    with pytest.raises(CheckpointError, match="labels B are not one token"):
        policy_trainer(
            make_model(tokenizer),
            tokenizer,
            mixture=[make_row(0)],
            questions=ask(),
            stage=stage_of(),
            folder=tmp_path,
        )


@pytest.mark.parametrize("before", ["", "[A]", "A", "word.", "word ", "]\n", "[A] > [B]", "é", "!?"])
def test_whatever_the_answer_its_end_is_known(make_tokenizer: Any, before: str) -> None:
    tokenizer = make_tokenizer()
    prompts = Prompts(ask(), tokenizer)
    tokens = prompts.chat.encode(f"<answer>{before}{ANSWER_CLOSE}")
    assert any(tuple(tokens[-len(ending) + 1 :]) == ending[:-1] for ending in prompts.endings())
    assert {ending[-1] for ending in prompts.endings()} == {tokenizer.eos_token_id}


def test_without_a_token_for_the_end_of_a_turn_only_the_answer_ends(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    whole = Prompts(ask(), tokenizer).endings()
    tokenizer.eos_token = None
    prompts = Prompts(ask(), tokenizer)
    assert prompts.endings() == {tokens[:-1] for tokens in whole}
    assert None not in prompts.answer("A")


def test_a_turn_ends_with_its_answer(make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path) -> None:
    import torch

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    questions, row = ask(thinking=8), make_row(0)
    trainer = policy_trainer(
        model, tokenizer, mixture=[row, make_row(1)], questions=questions, stage=stage_of(), folder=tmp_path
    )
    text = trainer.train_dataset[0]["prompt"] + "Well.\n</think>\n" + render_answer(["B"])
    tokens = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    written = model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), generation_config=trainer.generation_config
    )
    assert written[0, tokens.shape[1] :].tolist() == [tokenizer.eos_token_id]


def test_rewards_follow_from_what_is_asked() -> None:
    def names(**settings: Any) -> dict[str, float]:
        stage = stage_of(**settings.pop("stage", {}))
        ranker = settings.pop("ranker", {})
        asked = "rank" if ranker.get("strategy") == "dranker" else "eliminate"
        found = stage_rewards(stage, ask=asked, questions=ask(**ranker), limit=50)
        return {reward.__name__: weight for reward, weight in found.values()}

    assert names() == {"elimination_reward": 1}
    assert names(stage={"graded": True}) == {"elimination_regret_reward": 1}
    assert names(ranker={"strategy": "dranker"}) == {"ranking_reward": 1}
    form = {"format_reward": 1, "tag_count_reward": 1, "overlong_reward": 1}
    assert names(ranker={"thinking": 40}) == {"elimination_reward": 1} | form
    own = {"elimination": 1.0, "overlong": 0.2}
    assert names(ranker={"thinking": 40}, stage={"rewards": own}) == {"elimination_reward": 1, "overlong_reward": 0.2}
    with pytest.raises(InputError, match=r"format cannot judge.*use elimination$"):
        names(stage={"rewards": {"elimination": 1.0, "format": 1.0}})
    with pytest.raises(InputError, match="ranking cannot judge"):
        names(stage={"rewards": {"ranking": 1.0}})
    with pytest.raises(InputError, match="none judges the answer itself: add elimination"):
        names(ranker={"thinking": 40}, stage={"rewards": {"format": 1.0}})


def test_settings_that_do_not_fit_are_refused(make_model: Any, tokenizer: Any, make_row: Any, tmp_path: Path) -> None:
    def build(questions: Questions, **settings: Any) -> None:
        policy_trainer(
            make_model(tokenizer),
            tokenizer,
            mixture=[make_row(0), make_row(1)],
            questions=questions,
            stage=stage_of(**settings),
            folder=tmp_path,
        )

    with pytest.raises(InputError, match=r"ranker\.drop: .*one label a step, not 2"):
        build(ask(drop=2))
    with pytest.raises(InputError, match="vllm: an answer of one label"):
        build(ask(), vllm="colocate")
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(InputError, match=r"vllm: is not installed: TRL 1\.16 generates with vLLM 0\.22 to 0\.31"):
            build(ask(thinking=16), vllm="colocate")


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_vllm_is_told_where_to_run_and_when_an_answer_ends(tokenizer: Any, method: str) -> None:
    def told(choices: int = 0, **settings: Any) -> dict[str, Any]:
        prompts = Prompts(ask(thinking=0 if choices else 16), tokenizer)
        stage = stage_of(method=method, max_prompt_tokens=200, max_completion_tokens=40, **settings)
        return generation_arguments(stage, prompts, choices, longest=40, played=False)

    inside = told(vllm="colocate", vllm_memory=0.2)
    assert (inside["use_vllm"], inside["vllm_mode"]) == (True, "colocate")
    assert (inside["vllm_gpu_memory_utilization"], inside["vllm_max_model_length"]) == (0.2, 240)
    assert inside["generation_kwargs"] == {"stop": ["</answer>"], "include_stop_str_in_output": True}
    served = told(vllm="server", vllm_server="http://localhost:8000")
    assert (served["vllm_mode"], served["vllm_server_base_url"]) == ("server", "http://localhost:8000")
    assert "vllm_gpu_memory_utilization" not in served
    labels = told(choices=2, vllm="colocate")["generation_kwargs"]["allowed_token_ids"]
    assert labels == [ChatTokenizer(tokenizer).label_ids[label] for label in "AB"]


def test_a_batch_counts_rows_and_none_is_left_out(
    make_model: Any, tokenizer: Any, make_row: Any, tmp_path: Path
) -> None:
    rows = [make_row(number) for number in range(7)]
    settings = {"batch": 3, "group": 4, "micro_batch": 5}
    trainer = policy_trainer(
        make_model(tokenizer), tokenizer, mixture=rows, questions=ask(), stage=stage_of(**settings), folder=tmp_path
    )
    arguments = trainer.args
    assert arguments.per_device_train_batch_size == 4  # the largest part of 12 answers that is at most 5
    assert (arguments.generation_batch_size, arguments.max_steps) == (12, 3)
    asked = list(trainer.train_dataset["row"])
    assert asked == [row.id for row in rows] + ["r0", "r1"]
    sampled = list(trainer._get_train_sampler())
    groups = [asked[number] for number in sampled[::4]]
    assert groups[:3] == groups[3:6] == ["r0", "r1", "r2"]  # in order, and again for every micro-batch
    assert set(groups) == {row.id for row in rows}


@pytest.mark.parametrize(("method", "on_policy"), [("grpo", False), ("grpo", True), ("rloo", False)])
def test_it_learns_to_spare_the_right_one(
    make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path, method: str, on_policy: bool
) -> None:
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    rows = [make_row(3 * number, candidates=3) for number in range(64)]  # the first is right, always
    stage = stage_of(
        method=method, on_policy=on_policy, examples=64, batch=4, group=8, learning_rate=5e-3, save_every=1000
    )
    train_policy(model, tokenizer, mixture=rows, questions=ask(), stage=stage, folder=tmp_path)
    log = log_of(tmp_path)
    rewards = [line["reward"] for line in log]
    assert sum(rewards[:2]) / 2 < 0.85  # chance is 2 of 3
    assert sum(rewards[-4:]) / 4 > 0.95
    # As it learns, more and more groups agree, and teach nothing any more: the log says how many.
    agreed = [line["frac_reward_zero_std"] for line in log]
    assert sum(agreed[:4]) < sum(agreed[-4:])
    assert {"entropy", "completions/mean_length", "rewards/elimination_reward/mean"} <= set(log[-1])


class KillError(Exception):
    """Stands for a kill."""


def killer(step: int) -> Any:
    from transformers import TrainerCallback

    class Killer(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                raise KillError

    return Killer()


@pytest.mark.parametrize(
    ("ranker", "settings", "lora"),
    [
        ({}, {"on_policy": True, "kl": 0.1}, False),
        ({"form": "rewrite"}, {"iterations": 2}, True),
        ({"thinking": 8}, {"kl": 0.1}, True),
        ({}, {"method": "rloo", "kl": 0.1}, False),
        ({"thinking": 8, "form": "rewrite"}, {"method": "rloo", "kl": 0.1}, True),
    ],
)
def test_after_a_kill_it_goes_on_as_if_nothing_had_been(
    make_tokenizer: Any,
    make_model: Any,
    make_row: Any,
    tmp_path: Path,
    ranker: dict[str, Any],
    settings: dict[str, Any],
    lora: bool,
    first_steps: Any,
) -> None:
    import torch

    tokenizer = make_tokenizer()
    rows, questions, stage = [make_row(number) for number in range(8)], ask(**ranker), stage_of(**settings)

    def start() -> Any:
        model = make_model(tokenizer)
        if lora:
            torch.manual_seed(0)
            model = adapted(model)
        return model

    def train(model: Any, folder: Path, **more: Any) -> Any:
        train_policy(model, tokenizer, mixture=rows, questions=questions, stage=stage, folder=folder, **more)
        return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}

    before = {name: value.clone() for name, value in start().state_dict().items()}
    whole = train(start(), tmp_path / "whole")
    with pytest.raises(KillError):
        train(start(), tmp_path / "killed", callbacks=[killer(3)])
    # The kill came while the next checkpoint was written.
    last = last_checkpoint(tmp_path / "killed")
    assert last is not None
    assert last.endswith("checkpoint-2")
    shutil.copytree(last, tmp_path / "killed" / "checkpoint-3")
    (tmp_path / "killed" / "checkpoint-3" / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path / "killed") == last
    resumed = train(start(), tmp_path / "killed", resume=True, callbacks=[first_steps])
    assert first_steps.begun[0] == 2
    assert set(whole) == set(resumed)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6, msg=name)
    assert any(not torch.equal(before[name], value) for name, value in whole.items())
    over = train(start(), tmp_path / "whole", resume=True)  # takes what was left, and no step more
    for name, value in whole.items():
        torch.testing.assert_close(over[name], value, rtol=0, atol=1e-6, msg=name)


def test_nothing_of_a_trainer_stays_on_the_model(
    make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    rows = [make_row(number) for number in range(4)]
    for number, model in enumerate((make_model(tokenizer), adapted(make_model(tokenizer)))):
        name = model.config._name_or_path
        for stage in range(2):  # a second stage goes on with the same model
            train_policy(
                model,
                tokenizer,
                mixture=rows,
                questions=ask(),
                stage=stage_of(examples=4, kl=0.1),
                folder=tmp_path / f"{number}{stage}",
            )
            base = model.get_base_model() if number else model
            assert not {"forward", "_original_forward"} & {*vars(model), *vars(base)}
            assert set(getattr(model, "peft_config", {})) == ({"default"} if number else set())
            assert model.config._name_or_path == name
        assert any(parameter.requires_grad for parameter in model.parameters())


def test_the_divergence_of_whole_weights_is_from_where_the_stage_began(
    make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path
) -> None:
    import torch

    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    model.config._name_or_path = "some/base"  # what TRL would load, and measure from
    with as_it_was(model):
        trainer = policy_trainer(
            model, tokenizer, mixture=[make_row(0)], questions=ask(), stage=stage_of(kl=0.1), folder=tmp_path
        )
        for name, value in trainer.ref_model.state_dict().items():
            torch.testing.assert_close(value, model.state_dict()[name])
    assert model.config._name_or_path == "some/base"


def test_every_group_of_an_untrained_direct_ranker_agrees_and_the_log_says_so(
    make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer()
    train_policy(
        make_model(tokenizer),
        tokenizer,
        mixture=[make_row(number) for number in range(4)],
        questions=ask(strategy="dranker"),
        stage=stage_of(examples=4),
        folder=tmp_path,
    )
    assert [line["frac_reward_zero_std"] for line in log_of(tmp_path)] == [1.0, 1.0]
    assert {line["reward"] for line in log_of(tmp_path)} == {-1.0}


TWO_PROCESSES = """
import json, sys
from accelerate import PartialState
PartialState(cpu=True)
sys.path.insert(0, {tests!r})
from conftest import build_model, build_row, build_tokenizer
from r1_rerank.checkpoint import BaseModelCard
from r1_rerank.training.grpo import train_policy
from r1_rerank.training.processes import leave
from r1_rerank.training.questions import Questions
from r1_rerank.training.recipe import PolicyStage, RankerSettings

tokenizer = build_tokenizer()
train_policy(
    build_model(tokenizer),
    tokenizer,
    mixture=[build_row(3 * number, candidates=3) for number in range(16)],
    questions=Questions(RankerSettings().card(BaseModelCard(name="toy", sha256=None))),
    stage=PolicyStage(**json.loads({stage!r})),
    folder={folder!r},
)
leave()
"""


def test_two_processes_train_as_one(
    make_tokenizer: Any, make_model: Any, make_row: Any, tmp_path: Path, launch: Any
) -> None:
    tokenizer, stage = make_tokenizer(), stage_of(on_policy=True, examples=16, batch=4, learning_rate=5e-3)
    rows = [make_row(3 * number, candidates=3) for number in range(16)]
    model = make_model(tokenizer)
    train_policy(model, tokenizer, mixture=rows, questions=ask(), stage=stage, folder=tmp_path / "one")
    script = tmp_path / "train.py"
    folder, tests = str(tmp_path / "two"), str(Path(__file__).parent)
    script.write_text(TWO_PROCESSES.format(tests=tests, stage=stage.model_dump_json(), folder=folder))
    launch(str(script))
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    # The same states, the same draws and, but for rounding, the same weights.
    assert [line["num_tokens"] for line in one] == [line["num_tokens"] for line in two]
    assert [line["reward"] for line in one] == pytest.approx([line["reward"] for line in two])
    assert [line["grad_norm"] for line in one] == pytest.approx([line["grad_norm"] for line in two], rel=1e-3)


def recipe_file(name: str) -> Path:
    return Path(str(resources.files("r1_rerank.training"))) / "recipes" / f"{name}.yaml"


@pytest.mark.parametrize(
    ("name", "kind", "machines"),
    [
        ("one-gpu", "NO", 1),
        ("many-gpus", "MULTI_GPU", 1),
        ("many-gpus-fsdp", "FSDP", 1),
        ("many-machines-zero3", "DEEPSPEED", 2),
    ],
)
def test_accelerate_reads_its_files(name: str, kind: str, machines: int) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(recipe_file(f"accelerate-{name}")))
    assert (config.distributed_type, config.num_machines, config.mixed_precision) == (kind, machines, "bf16")
    assert config.num_processes >= machines


def test_the_file_for_verl_has_what_the_paper_says() -> None:
    file = yaml.safe_load(recipe_file("verl-ppo").read_text())
    data, actor, critic = file["data"], file["actor_rollout_ref"]["actor"], file["critic"]
    assert (data["train_batch_size"], data["max_prompt_length"], data["max_response_length"]) == (64, 1400, 1024)
    assert (float(actor["optim"]["lr"]), float(critic["optim"]["lr"]), actor["ppo_mini_batch_size"]) == (1e-6, 2e-6, 32)
    assert (file["algorithm"]["adv_estimator"], file["algorithm"]["kl_ctrl"]["kl_coef"]) == ("gae", 0.001)
    assert (file["trainer"]["total_training_steps"], file["trainer"]["n_gpus_per_node"]) == (1501, 4)
    reward = file["reward"]["custom_reward_function"]
    module = importlib.import_module(reward["path"].removeprefix("pkg://"))
    assert callable(getattr(module, reward["name"]))


@pytest.mark.model
def test_the_embedded_weights_take_a_few_steps(weights: str, make_row: Any, tmp_path: Path) -> None:
    import torch

    from r1_rerank.engines.loading import load_model

    model, tokenizer = load_model(weights, None, "cpu", "float32")
    model = adapted(model)
    mark_precision(model, "mixed")
    before = {name: value.clone() for name, value in model.state_dict().items() if "lora_B" in name}
    rows: list[Row] = [make_row(number, candidates=3) for number in range(2)]
    stage = stage_of(on_policy=True, examples=2, batch=1, group=2)
    train_policy(model, tokenizer, mixture=rows, questions=ask(alphabet=ALPHABET), stage=stage, folder=tmp_path)
    log = log_of(tmp_path)
    assert len(log) == 2
    assert all(0 <= line["reward"] <= 1 for line in log)
    changed = [name for name, value in before.items() if not torch.equal(value, model.state_dict()[name])]
    assert changed or all(line["frac_reward_zero_std"] == 1 for line in log)
