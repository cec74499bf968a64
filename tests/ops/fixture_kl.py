"""The reference of fixture F and the golden divergences to it, in nats."""

import torch

from tests.fixture_f import LOGITS

REF_LOGITS = LOGITS + torch.tensor([0.5, -0.25, 0.0, 0.25, -0.5], dtype=torch.float64)
KL_REF = torch.tensor(
    [
        0.0713406568, 0.0104043860, 0.0001201756, 0.0275400132, 0.0616740719, 0.0178711844,
        0.0521348583, 0.0192302187,
    ],
    dtype=torch.float64,
)  # fmt: skip
