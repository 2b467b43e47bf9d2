"""The moving average of a model's weights (EMA), which is evaluated and kept; whole in a checkpoint, however it is held."""

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


class Average(EMAModel):
    """`EMAModel` of a model's weights; where FSDP has cut them up, each process averages its own part."""

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        super().__init__(self.own(), decay=decay, foreach=True)

    @torch.enable_grad()  # or the parts would seem to be weights that are not trained, which diffusers does not average
    def own(self) -> list[torch.Tensor]:
        """The weights as this process holds them."""
        return [p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters()]

    def state_dict(self) -> dict:
        """With whole tensors: under FSDP, call it in all processes."""
        state = super().state_dict()
        state["shadow_params"] = [
            DTensor.from_local(own, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()
            if isinstance(p, DTensor)
            else own
            for own, p in zip(state["shadow_params"], self.model.parameters(), strict=True)
        ]
        return state

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError when it is another model's."""
        parameters = list(self.model.parameters())
        shapes = [tuple(value.shape) for value in state["shadow_params"]]
        if shapes != [tuple(p.shape) for p in parameters]:
            raise ValueError("the average is of another model's weights")
        whole = [value.to(p.device) for value, p in zip(state["shadow_params"], parameters, strict=True)]
        own = [
            distribute_tensor(value, p.device_mesh, p.placements).to_local() if isinstance(p, DTensor) else value
            for value, p in zip(whole, parameters)
        ]
        super().load_state_dict(state | {"shadow_params": own})
