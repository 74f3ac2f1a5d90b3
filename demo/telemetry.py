"""Device telemetry: the faults with their thresholds, lines that show them, and the one right answer to each line.

An answer is a function of the line alone, so a program can decide whether a model is right.
"""

import re
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Gauge:
    """One reading of a device. `keys` spell it, with the unit they leave to be written after the value."""

    name: str
    keys: tuple[tuple[str, str], ...]
    fault: Callable[[float], bool]
    healthy: Callable[[Random], str]
    faulty: Callable[[Random], str]
    finding: str
    advice: str


def whole(low: int, high: int) -> Callable[[Random], str]:
    return lambda rng: str(rng.randint(low, high))


def decimal(low: float, high: float) -> Callable[[Random], str]:
    """Two digits after the point, or one where that stays in the range."""

    def draw(rng: Random) -> str:
        value = rng.uniform(low, high)
        short = f"{value:.1f}"
        return short if rng.random() < 0.2 and low <= float(short) <= high else f"{value:.2f}"

    return draw


def celsius(low: int, high: int) -> Callable[[Random], str]:
    def draw(rng: Random) -> str:
        value = rng.randint(low, high)
        return f"{value}.{rng.randint(0, 9)}" if rng.random() < 0.2 else str(value)

    return draw


# Worst first: an answer names the first two that are at fault. `fault` is the threshold.
GAUGES = (
    Gauge("fan", (("fan", "rpm"), ("fan_rpm", "")), lambda v: v == 0,
          whole(900, 4800), whole(0, 0),
          "has a stopped fan at {} rpm", "clean or replace the fan"),
    Gauge("temperature", (("temp", "C"), ("cpu_temp", "C")), lambda v: v >= 80,
          celsius(31, 79), celsius(80, 109),
          "runs hot at {} C", "lower the load until it is below 80 C"),
    Gauge("disk", (("disk", "%"), ("disk_used", "%")), lambda v: v >= 90,
          whole(8, 89), whole(90, 100),
          "has a disk that is {}% full", "delete old logs and unused models"),
    Gauge("memory", (("mem", "%"), ("mem_used", "%")), lambda v: v >= 90,
          whole(12, 89), whole(90, 100),
          "has its memory {}% in use", "stop the services it does not need"),
    Gauge("voltage", (("volt", "V"), ("supply", "V")), lambda v: v < 4.8,
          decimal(4.80, 5.25), decimal(4.10, 4.79),
          "gets only {} V", "replace the power supply or its cable"),
    Gauge("battery", (("batt", "%"), ("battery", "%")), lambda v: v < 30,
          whole(30, 100), whole(2, 29),
          "has only {}% of its battery left", "restore mains power or shut it down"),
    Gauge("restarts", (("restarts", ""), ("restart_count", "")), lambda v: v >= 10,
          whole(0, 9), whole(10, 480),
          "has restarted its server {} times", "read the first error in the server's log"),
    Gauge("latency", (("p95", "ms"), ("p95_ms", "")), lambda v: v >= 2000,
          whole(90, 1999), whole(2000, 19900),
          "answers slowly with a p95 of {} ms", "allow fewer parallel requests"),
    Gauge("load", (("load", ""), ("cpu_load", "")), lambda v: v >= 1,
          decimal(0.02, 0.99), decimal(1.00, 9.90),
          "is overloaded at {} per core", "move work to another device"),
    Gauge("loss", (("loss", "%"), ("packet_loss", "%")), lambda v: v >= 5,
          whole(0, 4), whole(5, 95),
          "loses {}% of its packets", "check the antenna and the switch port"),
)
HEALTHY = "is healthy: every reading is within its limits. There is nothing to do."

# Fields that say nothing about health.
EXTRAS = (
    ("uptime", lambda rng: f"{rng.randint(0, 400)}d"),
    ("fw", lambda rng: f"{rng.randint(1, 9)}.{rng.randint(0, 30)}"),
    ("users", lambda rng: str(rng.randint(0, 40))),
    ("rssi", lambda rng: f"-{rng.randint(30, 90)}dBm"),
)

PLACES = (
    "edge cam gw gateway node pi kiosk rack plant line press dock gate shop store lab door lift pump mill oven belt "
    "robot crane truck tram ship farm barn silo well roof hall floor site north south east west alpha beta gamma delta "
    "depot yard tower mast relay probe sensor meter panel box unit station clinic school berlin oslo lyon porto kyoto "
    "quito perth turin delhi cairo srv host web db cache infer llm npu arm jetson nuc"
).split()


def held_out(text: str, share: int = 10) -> bool:
    """Whether `text` belongs to the held-out split: one in `share`, by its checksum. Case and stops do not count."""
    return zlib.crc32(text.lower().rstrip("?!.").encode()) % share == 0


def a_name(rng: Random, want_held_out: bool) -> str:
    """A device name of the wanted split."""
    while True:
        name = any_name(rng)
        if held_out(name) == want_held_out:
            return name


def any_name(rng: Random) -> str:
    def letters(low, high):
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(low, high)))

    def digits(low, high):
        return "".join(rng.choices(string.digits, k=rng.randint(low, high)))

    def place():
        return rng.choice(PLACES) if rng.random() < 0.75 else letters(2, 6)

    def serial():
        return "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(3, 6)))

    shape = rng.randrange(10)
    joint = rng.choice("---_.")
    name = {
        0: lambda: f"{place()}{joint}{place()}{joint}{digits(1, 3)}",
        1: lambda: f"{place()}{joint}{digits(1, 4)}",
        2: lambda: f"{place()}{digits(1, 3)}",
        3: lambda: f"{place()}{digits(1, 2)}{joint}{place()}{digits(1, 2)}",
        4: lambda: f"{place()}{joint}{serial()}",
        5: lambda: f"{letters(2, 4)}{joint}{digits(2, 5)}",
        6: lambda: f"{place()}{joint}{place()}",
        7: lambda: f"{place()}{digits(1, 2)}.{place()}.{rng.choice(['local', 'lan', 'net', 'example'])}",
        8: lambda: f"{letters(3, 7)}{joint}{letters(1, 3)}{digits(1, 2)}",
        9: lambda: f"{place()}{joint}{place()}{joint}{letters(1, 2)}{digits(1, 3)}",
    }[shape]()
    return name.upper() if rng.random() < 0.08 else name


def a_value(rng: Random, gauge: Gauge, at_fault: bool, want_held_out: bool) -> str:
    """A value; one in eight of a gauge's faulty values is held out, where the gauge has enough of them."""
    if not at_fault:
        return gauge.healthy(rng)
    few = gauge.name in ("fan", "disk", "memory")
    while True:
        value = gauge.faulty(rng)
        if few or want_held_out or not held_out(f"{gauge.name} {value}", 8):
            return value


@dataclass(frozen=True)
class Report:
    """What a device says of itself: gauges with values as they are written, and the name, None where it gives none."""

    name: str | None
    readings: tuple[tuple[Gauge, str], ...]

    def faults(self) -> list[tuple[Gauge, str]]:
        """The readings at fault, worst first."""
        found = [(gauge, value) for gauge, value in self.readings if gauge.fault(float(value))]
        return sorted(found, key=lambda reading: GAUGES.index(reading[0]))

    def answer(self) -> str:
        subject = self.name or "The device"
        findings = [gauge.finding.format(value) for gauge, value in self.faults()[:2]]
        if not findings:
            return f"{subject} {HEALTHY}"
        return f"{subject} {' and '.join(findings)}. {sentence(', then '.join(self.advice()))}"

    def advice(self) -> list[str]:
        return [gauge.advice for gauge, _ in self.faults()[:2]]

    def first_step(self) -> str:
        return sentence(f"first, {self.advice()[0]}") if self.advice() else "There is nothing to do."

    def each_reading(self) -> str:
        """A verdict on every reading, in the order of the line."""
        verdicts = [
            f"{gauge.name} {value} {'bad' if gauge.fault(float(value)) else 'ok'}"
            for gauge, value in self.readings
        ]
        return f"{self.name or 'The device'}: {', '.join(verdicts)}."

    def which_device(self) -> str:
        return f"It is {self.name}." if self.name else "The line gives no device name."


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


READINGS_MAX = 7


def a_report(rng: Random, want_held_out: bool, readings_max: int = READINGS_MAX) -> Report:
    faults = rng.choices((0, 1, 2, 3), (0.18, 0.47, 0.30, 0.05))[0]
    readings = max(faults, rng.choices((1, 2, 3, 4, 5, 6, 7), (1, 2, 5, 7, 6, 4, 2))[0])
    if readings > readings_max:
        readings = rng.randint(1, readings_max)
        faults = min(faults, readings)
    gauges = rng.sample(GAUGES, readings)
    at_fault = set(rng.sample(range(len(gauges)), faults))
    readings = tuple((g, a_value(rng, g, i in at_fault, want_held_out)) for i, g in enumerate(gauges))
    return Report(None if rng.random() < 0.03 else a_name(rng, want_held_out), readings)


def line_of(rng: Random, report: Report) -> str:
    """One way to write the report as a line."""
    fields = [(*spelling(rng, gauge), value) for gauge, value in report.readings]
    for key, draw in rng.sample(EXTRAS, rng.choices((0, 1, 2), (4, 4, 1))[0]):
        fields.insert(rng.randint(0, len(fields)), (key, "", draw(rng)))
    between = rng.choices((" ", ", "), (12, 4))[0]
    equals = rng.choices(("=", ": ", ":"), (12, 2, 2))[0]
    body = between.join(f"{key}{equals}{value}{unit}" for key, unit, value in fields)
    if report.name is None:
        return body
    before = rng.choices(("", "device=", "host="), (16, 1, 1))[0]
    after = rng.choices((" ", ": ", between), (10, 3, 2))[0]
    return f"{before}{report.name}{after}{body}"


def spelling(rng: Random, gauge: Gauge) -> tuple[str, str]:
    key, unit = rng.choices(gauge.keys, (3, 1))[0]
    return key, "" if unit and rng.random() < 0.08 else unit


READING = re.compile(
    rf"(?<![\w.])({'|'.join(key for gauge in GAUGES for key, _ in gauge.keys)})(?:=|: ?)(\d+(?:\.\d+)?)"
)
GAUGE_OF_KEY = {key: gauge for gauge in GAUGES for key, _ in gauge.keys}


def verdicts(text: str) -> list[tuple[int, Gauge, bool]]:
    """Every reading in `text`: where its number ends, its gauge, and whether it is at fault."""
    return [
        (match.end(), gauge := GAUGE_OF_KEY[match[1]], gauge.fault(float(match[2])))
        for match in READING.finditer(text)
    ]


WRAPPERS = (
    "What is wrong here? {}", "what is wrong with this device? {}", "What's wrong? {}", "Please check: {}",
    "check this: {}", "Can you look at this? {}", "please look at this line: {}", "Diagnose this: {}",
    "Is this device ok? {}", "is this healthy? {}", "What should I do? {}", "help me with this one: {}",
    "telemetry: {}", "Here is a line of telemetry: {}", "Status of this device? {}", "{} what is wrong?",
    "{} - what should I do?", "{}\nWhat is wrong here?", "{}\nWhat should I do?", "What is wrong here?\n{}",
    "Read this:\n{}", "and this one? {}", "now this: {}", "next: {}", "{} ok?", "Tell me what is wrong: {}",
)
WHAT_IS_WRONG = (
    "What is wrong here?", "what is wrong?", "What's wrong with it?", "Is this device ok?", "What is the matter?",
    "diagnose it", "what should I do about it?", "is it healthy?", "What is its state?",
)
EACH_READING = (
    "Check every reading.", "Check each reading.", "Go through the readings.", "Which readings are bad?", "each reading?",
    "reading by reading", "Which readings are ok?", "Look at every reading.", "List the readings.", "Judge each reading.",
)
FIRST_STEP = (
    "What should I do first?", "what first?", "Where do I start?", "which step comes first?", "What is the first step?",
    "and what do I do first?", "What comes first?", "first step?", "What should be done first?",
)
WHICH_DEVICE = (
    "Which device is it?", "which device was that?", "What is its name?", "name of the device?", "Which one is it?",
    "What was the device called?", "which device?", "What device is this about?", "Tell me the device name.",
)
