"""Ask the model who is in a picture: does it know a person's face by their name?

The identity inference attack of "Does CLIP Know My Face?" (arXiv 2209.07341), and the measure of
forgetting of "Defending Our Privacy With Backdoors" (arXiv 2310.08320). A person is attacked with
`m` pictures, `k` candidate names and `p` prompts. Each (prompt, picture) names its most similar
candidate, each prompt the plurality of its pictures; a tie for first place counts as wrong. A
person is known if at least one prompt names them. People the model never saw (group `unknown`)
give the false positives.

That rule is generous to the attacker and a coarse scale. Beside it stand the share of people named
by more than half of the prompts, the share of right (prompt, picture) cases, and the same share
with the names of the known people as the only candidates (`closed_set`). `accuracy` is over all
people: known ones that were found, and unknown ones that were not.

`identity_inference` measures this group by group, on request also by variants of the names;
`encoder_swap` which tower forgot; `neighbours` what became of people with a forgotten's name.
"""

from trainer import hookimpl

from .encoder_swap import EncoderSwap
from .inference import IdentityInference
from .neighbours import Neighbours


@hookimpl
def trainer_evaluations():
    return [IdentityInference, EncoderSwap, Neighbours]
