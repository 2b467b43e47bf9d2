"""The loop of all training commands: devices, precision, processes, learning rates, averages, logs and checkpoints.

It stands on Hugging Face `accelerate`: the same command trains on a CPU or one GPU by itself, and on several GPUs or
machines under `accelerate launch` or `torchrun`. A trainer reads like this:

    loop = Loop("prior", args, steps)                          # seeds torch; args: those of arguments.add_arguments
    model = loop.prepare("prior", model, [muon, adamw], ema_decay=0.999, max_norm=1.0)  # on loop.device; in DDP or FSDP
    loop.register("codebook", codebook)                        # anything else with state_dict and load_state_dict
    first = loop.restore()                                     # the step to go on with: 0, or that of the last checkpoint
    for step, batch in loop.run(batches(..., loop.batch_size, first, steps, part=loop.part)):
        for part in loop.parts(batch):                         # once, or as often as --accumulation says
            with loop.autocast():
                loss = ...
            loop.backward(loss)
        loop.update("prior")                                   # clip, one step at the scheduled rate, average
        if loop.due(20):
            loop.log(loss=loss)                                # out/log.jsonl, the progress line, TensorBoard
    loop.save_pretrained("prior", args.out / "prior")          # the average, where there is one

A step is the work on one global batch (`--batch-size`), however many processes share it. Every random choice derives from
(seed, step, position in the global batch): draw for all positions from a generator of your own, then take `loop.own(...)`.
So a run goes on with another number of processes (but not under FSDP when it was not before, nor the other way round), and in
one process and in float32 a run that was killed ends with the very bytes of one that was not. Under `out`, which several
machines must share:

    config.json                 the run's arguments; a run does not go on with others
    log.jsonl                   a line of figures now and then: step (steps done), time (seconds since 1970), ...
    pictures/                   what it looks like meanwhile
    checkpoints/step_000123/    the last ones (--keep), each whole or not there
"""

import argparse
import copy
import json
import math
import os
import pickle
import shutil
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from dalle_core.errors import InputError, ModelError
from dalle_core.training import checkpoints, memory, processes
from dalle_core.training.arguments import check_config, write_config
from dalle_core.training.average import Average

DAMAGE = (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Linear warm-up, then half a cosine from `peak` to `floor * peak` (Loshchilov and Hutter 2017, SGDR, equation 5)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


class Together(torch.optim.Optimizer):
    """Several optimizers of one model as one: accelerate's checkpoints, FSDP and loss scaling count on one a model.

    They share the groups and the state, so that saving, loading and moving need nothing of their own.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share([group for optimizer in optimizers for group in optimizer.param_groups])

    def _share(self, groups: list[dict]) -> None:
        self.param_groups, first = groups, 0
        for optimizer in self.optimizers:
            count = len(optimizer.param_groups)
            optimizer.param_groups, optimizer.state = groups[first : first + count], self.state
            first += count

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self._share(self.param_groups)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


@dataclass
class Trained:
    """A model and what trains it. `wrapped`: DDP or FSDP averages its gradients; else the loop does. `whole`: its structure
    without numbers, where FSDP has cut the model up."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Average | None
    max_norm: float | None
    wrapped: bool
    whole: nn.Module | None


class Loop:
    """See above. `steps` is the step at which the run ends; `warmup` is in steps.

    Raises InputError when the batch cannot be shared out, a folder cannot be written to, or the run was started with
    other arguments.
    """

    def __init__(self, name: str, args: argparse.Namespace, steps: int, warmup: int = 100):
        self.name, self.args, self.out, self.steps, self.warmup = name, args, Path(args.out), steps, warmup
        self.accumulation = getattr(args, "accumulation", 1)
        AcceleratorState._reset_state()  # one process may train one part after the other, each in its own precision
        try:
            self.accelerator = Accelerator(
                cpu=args.cpu,
                mixed_precision=args.precision,
                project_dir=str(self.out),
                log_with="tensorboard" if args.tensorboard else None,
                gradient_accumulation_plugin=GradientAccumulationPlugin(self.accumulation, sync_with_dataloader=False),
            )
        except ValueError as error:  # a precision that the device does not have, TensorBoard that is not installed
            raise InputError(str(error)) from None
        # Shared by all of a process, as is what is above: a run before may have stopped in the middle of a batch.
        self.accelerator.gradient_state._set_sync_gradients(True)
        self.device, self.first = self.accelerator.device, self.accelerator.is_main_process
        self.part = (self.accelerator.process_index, self.accelerator.num_processes)
        pieces = self.part[1] * self.accumulation
        if args.batch_size % pieces:
            raise InputError(
                f"--batch-size {args.batch_size} cannot be shared out evenly: {self.part[1]} processes, each in "
                f"{self.accumulation} parts (--accumulation). Take a multiple of {pieces}."
            )
        self.batch_size = args.batch_size
        self.step, self.trained, self.objects, self.bar = 0, {}, {}, None
        self.accelerator.register_save_state_pre_hook(self._save_models)
        self.accelerator.register_load_state_pre_hook(self._load_models)
        if self.going_on:
            check_config(self.out / "config.json", args)
        self.accelerator.wait_for_everyone()
        self._make_folder()
        torch.manual_seed(args.seed)

    def _make_folder(self) -> None:
        try:
            if self.first:
                for folder in ("checkpoints", "pictures"):
                    (self.out / folder).mkdir(parents=True, exist_ok=True)
                write_config(self.out / "config.json", self.args)
        except OSError as error:
            raise InputError(f"{self.out} cannot be written to ({error.strerror}): take another --out.") from None
        if self.args.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        self.saved_at = time.monotonic()

    def prepare(
        self,
        name: str,
        model: nn.Module,
        optimizer,
        ema_decay: float | None = None,
        max_norm: float | None = None,
        wrap: bool = True,
        compute=None,
    ) -> nn.Module:
        """Takes a model into the loop. Returns it as it is to be called: on the device, in DDP or FSDP.

        `optimizer`, or a list of several, has its peak learning rates. `wrap=False` is for models that are not trained
        through their `forward`: the loop averages their gradients over the processes itself. `compute()` runs the model, still
        on the CPU, on inputs like one part of a batch: then the memory of a step is told before there is one.
        """
        optimizer = Together(*optimizer) if isinstance(optimizer, list | tuple) else optimizer
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
        if compute:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.accelerator.mixed_precision != "no"):
                parts = memory.of_step(model, optimizer, bool(ema_decay), compute, self.part[1] if self.sharded else 1)
            self.print(memory.sentence(parts))
        whole = copy.deepcopy(model).to("meta") if self.sharded else None
        if wrap:
            model, optimizer = self.accelerator.prepare(model, optimizer)
        else:
            if self.sharded:
                raise InputError(f"The {name} does not train under FSDP: launch it without, as plain data-parallel processes.")
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
            processes.from_first_(*(tensor.data for tensor in (*model.parameters(), *model.buffers())))
            optimizer = self.accelerator.prepare_optimizer(optimizer)
        ema = Average(model, ema_decay) if ema_decay else None
        self.trained[name] = Trained(model, optimizer, ema, max_norm, wrap, whole)
        if ema:
            self.register(f"{name} average", ema)
        return model

    def register(self, name: str, object_) -> None:
        """Keeps `object_.state_dict()` in the checkpoints: tensors, numbers, strings, lists and dicts of them."""
        self.objects[name] = object_

    @property
    def part_size(self) -> int:
        """Pictures in one piece of `parts`: what a process has in memory at once."""
        return self.batch_size // (self.part[1] * self.accumulation)

    @property
    def sharded(self) -> bool:
        """Whether FSDP cuts models into a part for each process."""
        return self.accelerator.distributed_type == DistributedType.FSDP

    @property
    def going_on(self) -> bool:
        """Whether there are checkpoints to go on from."""
        return bool(checkpoints.found(self.out / "checkpoints"))

    def module(self, name: str) -> nn.Module:
        """The model itself, without what accelerate put around it."""
        return self.accelerator.unwrap_model(self.trained[name].model, keep_torch_compile=False)

    def run(self, batches):
        """Yields (step, batch) for the steps from the restored one on; saves in between and at the end."""
        start = self.step
        looks = {"unit": "step", "desc": self.name, "mininterval": 5, "disable": not self.first}
        with tqdm(total=self.steps, initial=start, **looks) as self.bar:
            saved = start if self.going_on else None
            for step, batch in enumerate(batches, start):
                self.step = step
                yield step, batch
                self.step = step + 1
                self.bar.update()
                if self._time_to_save():
                    self.save()
                    saved = self.step
            if saved != self.step:
                self.save()

    def own(self, whole):
        """This process's part of what was drawn for the whole batch: a tensor [B, ...] or a list of B."""
        rank, processes = self.part
        count = len(whole) // processes
        return whole[rank * count : (rank + 1) * count]

    def parts(self, *batch):
        """Yields the process's part of the batch in `--accumulation` equal pieces; gradients are averaged over them.

        `batch`: tensors and lists with one entry a picture; a single one comes alone, several as a tuple.
        """
        models = [trained.model for trained in self.trained.values() if trained.wrapped]
        count = len(batch[0]) // self.accumulation
        for i in range(self.accumulation):
            with self.accelerator.accumulate(*models):
                piece = tuple(values[i * count : (i + 1) * count] for values in batch)
                yield piece if len(piece) > 1 else piece[0]

    def autocast(self):
        return self.accelerator.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss)

    def update(self, name: str) -> None:
        """One step of the model's optimizer at the scheduled learning rate, and of its average. Gradients are cleared."""
        trained = self.trained[name]
        parameters = list(trained.model.parameters())
        if not trained.wrapped:
            processes.mean_([p.grad for p in parameters if p.grad is not None])
        if trained.max_norm:
            self.accelerator.clip_grad_norm_(parameters, trained.max_norm)
        for group in trained.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, group["peak"], self.warmup)
        trained.optimizer.step()
        trained.optimizer.zero_grad(set_to_none=True)
        if trained.ema:
            trained.ema.step(trained.ema.own())

    @contextmanager
    def averaged(self, name: str):
        """The model with the moving average of its weights, while this lasts; as it is when it has none."""
        trained = self.trained[name]
        if trained.ema is None:
            yield self.module(name)
            return
        trained.ema.store(trained.ema.own())
        trained.ema.copy_to(trained.ema.own())
        try:
            yield self.module(name)
        finally:
            for module in trained.model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()  # what a forward pass has gathered is not what is kept
            trained.ema.restore(trained.ema.own())

    def save_pretrained(self, name: str, folder: Path) -> None:
        """Writes the model (its average, where there is one) as its own `save_pretrained` does. Call it in all processes."""
        with self.averaged(name) as model:
            if self.sharded:
                state, model = self.accelerator.get_state_dict(self.trained[name].model), self.trained[name].whole
                if self.first:
                    model.load_state_dict(state, assign=True)
            if self.first:
                checkpoints.write_model(model, folder)
        self.accelerator.wait_for_everyone()

    def due(self, every: int) -> bool:
        """Whether this step is the last of `every` steps, or of all."""
        return (self.step + 1) % every == 0 or self.step + 1 == self.steps

    def log(self, **figures) -> None:
        """Notes figures (numbers or tensors of one number), averaged over the processes: call it in all of them."""
        values = [torch.as_tensor(value, dtype=torch.float32, device=self.device).detach() for value in figures.values()]
        values = torch.stack(values)
        processes.mean_([values])
        self.note(**dict(zip(figures, values.tolist())))

    def note(self, **figures: float) -> None:
        """Notes the first process's figures as they are."""
        if self.first:
            entry = {name: value if math.isfinite(value) else None for name, value in figures.items()}
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.step + 1, "time": time.time()} | entry) + "\n")
            if self.bar is not None:
                self.bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
            self.accelerator.log(figures, step=self.step + 1)

    def picture(self, name: str, image) -> None:
        """Keeps a PIL image as `out/pictures/NAME_000123.png`."""
        if self.first:
            image.save(self.out / "pictures" / f"{name}_{self.step + 1:06}.png")

    def print(self, text: str) -> None:
        """A line beside the progress line, of the first process."""
        if self.first:
            tqdm.write(text, file=sys.stdout)

    # Checkpoints

    def _time_to_save(self) -> bool:
        if self.part[1] == 1:
            return time.monotonic() - self.saved_at > self.args.save_minutes * 60
        if self.step % 10:  # asking the first process costs a message
            return False
        due = torch.tensor(int(time.monotonic() - self.saved_at > self.args.save_minutes * 60), device=self.device)
        processes.from_first_(due)
        return bool(due)

    def save(self) -> None:
        """Writes a checkpoint of the steps done. Raises ModelError when it cannot be written; older ones stay."""
        part = checkpoints.part_of(self.out / "checkpoints", self.step)
        try:
            if self.first:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(part))
            states = {name: object_.state_dict() for name, object_ in self.objects.items()}
            if self.first:
                torch.save(states, part / "objects.pt")
            self.accelerator.wait_for_everyone()
            if self.first:
                checkpoints.seal(part, self.args.keep)
        except (OSError, RuntimeError, SafetensorError) as error:
            free = shutil.disk_usage(self.out).free / 2**20  # torch.save does not say that the disk is full
            shutil.rmtree(part, ignore_errors=True)
            raise ModelError(
                f"The checkpoint of step {self.step} could not be written to {part.parent}, where {free:,.0f} MB are free "
                f"({error}): make room there, and the same command goes on from the checkpoint before."
            ) from error
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()

    def restore(self) -> int:
        """Loads the newest checkpoint that is whole. Returns the step to go on with.

        Raises ModelError when there are checkpoints and none can be read, InputError when the run is past its end.
        """
        for step, path in reversed(checkpoints.found(self.out / "checkpoints")):
            if self.sharded != any(path.glob("pytorch_model_fsdp*")):
                how = "without" if self.sharded else "under"
                raise InputError(f"{path} was written {how} FSDP: go on with it in the same way.")
            try:
                checkpoints.check(path)
                self._load(path)
            except DAMAGE as error:
                self.print(f"{path} is damaged ({error}): trying the one before.")
                continue
            self.step = step
            break
        else:
            if self.going_on:
                raise ModelError(f"No checkpoint in {self.out / 'checkpoints'} can be read: take another --out to start anew.")
        if self.step > self.steps:
            raise InputError(f"{self.out} has done {self.step} steps already, more than the {self.steps} it should end with.")
        if self.first:
            self._trim_log()
        return self.step

    def _trim_log(self) -> None:
        """Takes out what a run that was killed wrote after its last checkpoint: it will be written again."""
        path = self.out / "log.jsonl"
        if not path.exists():
            return
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= self.step:
                    lines.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                pass  # the kill cut it
        path.with_suffix(".part").write_text("".join(lines), encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)

    def _load(self, path: Path) -> None:
        self.accelerator.load_state(str(path))
        # Not through accelerate's registered objects, which it reads without weights_only.
        states = torch.load(path / "objects.pt", map_location="cpu", weights_only=True)
        if states.keys() != self.objects.keys():
            raise ValueError(f"objects.pt holds {sorted(states)} in place of {sorted(self.objects)}")
        for name, object_ in self.objects.items():
            object_.load_state_dict(states[name])

    def _save_models(self, models: list, weights: list, folder: str) -> None:
        """Without DDP's prefix, so that another number of processes can read them. FSDP has saved its own already."""
        if self.sharded:
            return
        weights.clear()
        for name in self.trained:
            if self.first:
                save_model(self.module(name), str(Path(folder) / f"{name}.safetensors"))

    def _load_models(self, models: list, folder: str) -> None:
        if self.sharded:
            return
        models.clear()
        for name in self.trained:
            load_model(self.module(name), Path(folder) / f"{name}.safetensors")
