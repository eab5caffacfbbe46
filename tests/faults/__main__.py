"""The command line: `python -m tests.faults [--quick] [--only NAME] [--broker installed|4.0|both] …`."""

import argparse
import asyncio
import random
import sys
from service.rabbitmq import PrivateBroker
from tests.faults.play import play
from tests.faults.scenarios import ALL
from tests.faults.scenarios.base import Form
import uvloop, orjson

def main() -> int:
    p = argparse.ArgumentParser()
    p.add_argument("--only", action="append"); p.add_argument("--times", type=int); p.add_argument("--seed", type=int, default=1)
    p.add_argument("--form", default="brief")
    told = p.parse_args()
    async def go():
        for s in ALL:
            if told.only and s.name not in told.only: continue
            with PrivateBroker() as b:
                row = await play(s(), told.times or s.times.of(Form(told.form)), b, [b.url], version="x", chance=random.Random(f"{told.seed}:{s.name}"), tell=lambda t: print(t, flush=True))
                print(orjson.dumps(row.as_json(), option=orjson.OPT_INDENT_2).decode(), row.account.missing[:5], flush=True)
    uvloop.run(go())
    return 0
sys.exit(main())
