"""Networks for multiple-instance learning: gated attention (Ilse et al., ICML 2018), mean and max pooling."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipit.config.mil import MilTrainingConfig


class MilOutput(NamedTuple):
    """Output of a network for one bag of n instances.

    Attributes:
        attention: Weight of each instance in the bag's representation; the weights are non-negative and sum to 1.
        instance_logits: Logit of each class for each instance, from the bag classifier.
        representation: Weighted mean of the embedded instances.
    """

    logits: Float[Tensor, " c"]
    attention: Float[Tensor, " n"]
    instance_logits: Float[Tensor, "n c"]
    representation: Float[Tensor, " h"]


class MilNetwork(nn.Module):
    """Bag classifier, which embeds and weights the instances, and classifies their weighted mean.

    An instance x is embedded as h = relu(W x) after standardisation. Its logits are C h + b. The same linear classifier
    is applied to the bag, so the bag's logits are the mean of its instances' logits, weighted by attention:

    - `attention`: weights softmax(w (tanh(V h) * sigmoid(U h))), equation 9 of Ilse et al.
    - `mean`: equal weights.
    - `max`: the logit of a class is the highest logit of any instance for this class. The weight of an instance is the
      fraction of classes for which it has the highest logit.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, classes: int, options: MilTrainingConfig) -> None:
        """Create the network with random weights."""
        super().__init__()
        self.pooling = options.pooling
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.embed = nn.Linear(dim, options.hidden)
        self.dropout = nn.Dropout(options.dropout)
        if self.pooling == "attention":
            self.attention_tanh = nn.Linear(options.hidden, options.attention)
            self.attention_gate = nn.Linear(options.hidden, options.attention)
            self.attention_weight = nn.Linear(options.attention, 1, bias=False)
        self.classifier = nn.Linear(options.hidden, classes)
        self.target_head: nn.Linear | None = None
        """Projection of the representation to the vectors of `BagTargets`, during training only."""

    def standardise(self, mean: Float[Tensor, " d"], scale: Float[Tensor, " d"]) -> None:
        """Set the feature mean and standard deviation used to standardise instances."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, features: Float[Tensor, "n d"]) -> MilOutput:
        """Classify one bag of at least one instance."""
        embedded = self.dropout(torch.relu(self.embed((features - self.mean) / self.scale)))
        instance_logits = self.classifier(embedded)
        attention = self._attention(embedded, instance_logits)
        representation = attention @ embedded
        logits = instance_logits.amax(dim=0) if self.pooling == "max" else self.classifier(representation)
        return MilOutput(logits, attention, instance_logits, representation)

    def _attention(self, embedded: Float[Tensor, "n h"], instance_logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
        n = len(embedded)
        if self.pooling == "attention":
            gated = torch.tanh(self.attention_tanh(embedded)) * torch.sigmoid(self.attention_gate(embedded))
            weights: Tensor = self.attention_weight(gated).squeeze(1).softmax(dim=0)
            return weights
        if self.pooling == "mean":
            return embedded.new_full((n,), 1 / n)
        highest = nn.functional.one_hot(instance_logits.argmax(dim=0), n)
        return highest.to(embedded.dtype).mean(dim=0)
