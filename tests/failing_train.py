"The training command, whose third loss is NaN in the process with rank RANK_THAT_FAILS."

import os
import sys

import kwanzaa_nb.train.command as command
import kwanzaa_nb.train.trainer as training

inner, seen = training.supervised_loss, []


def failing(model, batch, **more):
    total, count = inner(model, batch, **more)
    seen.append(count)
    fails = len(seen) == 3 and os.environ["RANK"] == os.environ["RANK_THAT_FAILS"]
    return (total * float("nan") if fails else total), count


training.supervised_loss = failing
sys.exit(command.main())
