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


def decimal(low: float, high: float, digits: int) -> Callable[[Random], str]:
    return lambda rng: f"{rng.uniform(low, high):.{digits}f}"


def celsius(low: int, high: int) -> Callable[[Random], str]:
    def draw(rng: Random) -> str:
        value = rng.randint(low, high)
        return f"{value}.{rng.randint(0, 9)}" if rng.random() < 0.2 else str(value)

    return draw


def offset(low: float, high: float, digits: int) -> Callable[[Random], str]:
    return lambda rng: f"{rng.choice('+-')}{rng.uniform(low, high):.{digits}f}"


# Worst first: an answer names the first two that are at fault. `fault` is the threshold.
GAUGES = (
    Gauge("fan", (("fan", "rpm"), ("fan_rpm", ""), ("fan_speed", "rpm")), lambda v: v == 0,
          whole(900, 4800), whole(0, 0),
          "has a stopped fan at {} rpm", "clean or replace the fan"),
    Gauge("temperature", (("temp", "C"), ("temp_c", ""), ("cpu_temp", "C"), ("temperature", "C")), lambda v: v >= 80,
          celsius(31, 79), celsius(80, 109),
          "runs hot at {} C", "lower the load until it is below 80 C"),
    Gauge("read_errors", (("disk_err", ""), ("io_errors", ""), ("read_errors", "")), lambda v: v >= 5,
          whole(0, 4), whole(5, 999),
          "counts {} disk read errors", "save its data and replace the disk"),
    Gauge("disk", (("disk", "%"), ("disk_used", "%"), ("disk_pct", "")), lambda v: v >= 90,
          whole(8, 89), whole(90, 100),
          "has a disk that is {}% full", "delete old logs and unused models"),
    Gauge("oom", (("oom", ""), ("oom_kills", "")), lambda v: v >= 1,
          whole(0, 0), whole(1, 60),
          "has an out-of-memory count of {}", "load a smaller model"),
    Gauge("memory", (("mem", "%"), ("mem_used", "%"), ("memory", "%")), lambda v: v >= 90,
          whole(12, 89), whole(90, 100),
          "has its memory {}% in use", "stop the services it does not need"),
    Gauge("swap", (("swap", "/s"), ("swap_in", "/s"), ("swapin", "/s")), lambda v: v >= 100,
          whole(0, 99), whole(100, 9800),
          "swaps in {} pages per second", "shorten the context or add memory"),
    Gauge("voltage", (("volt", "V"), ("supply", "V"), ("volts", "")), lambda v: v < 4.8,
          decimal(4.80, 5.25, 2), decimal(4.10, 4.79, 2),
          "gets only {} V", "replace the power supply or its cable"),
    Gauge("battery", (("batt", "%"), ("battery", "%"), ("ups", "%")), lambda v: v < 30,
          whole(30, 100), whole(2, 29),
          "has only {}% of its battery left", "restore mains power or shut it down"),
    Gauge("restarts", (("restarts", ""), ("restart_count", "")), lambda v: v >= 10,
          whole(0, 9), whole(10, 480),
          "has restarted its server {} times", "read the first error in the server's log"),
    Gauge("latency", (("p95", "ms"), ("p95_ms", ""), ("latency_p95", "ms")), lambda v: v >= 2000,
          whole(90, 1999), whole(2000, 19900),
          "answers slowly with a p95 of {} ms", "allow fewer parallel requests"),
    Gauge("load", (("load", ""), ("load1", ""), ("cpu_load", "")), lambda v: v >= 1,
          decimal(0.02, 0.99, 2), decimal(1.00, 9.90, 2),
          "is overloaded at {} per core", "move work to another device"),
    Gauge("loss", (("loss", "%"), ("pkt_loss", "%"), ("packet_loss", "%")), lambda v: v >= 5,
          whole(0, 4), whole(5, 95),
          "loses {}% of its packets", "check the antenna and the switch port"),
    Gauge("flaps", (("flaps", "/h"), ("link_flaps", "/h"), ("link_down", "")), lambda v: v >= 5,
          whole(0, 4), whole(5, 90),
          "lost its link {} times in an hour", "replace the network cable"),
    Gauge("clock", (("clock", "s"), ("ntp_offset", "s"), ("skew", "s")), lambda v: abs(v) >= 1,
          offset(0.0, 0.99, 2), offset(1.0, 900.0, 1),
          "has a clock that is off by {} s", "restart time synchronization"),
    Gauge("certificate", (("cert", "d"), ("cert_days", ""), ("tls_cert", "d")), lambda v: v < 10,
          whole(10, 364), whole(0, 9),
          "has a certificate with {} d left", "renew the certificate"),
)
HEALTHY = "is healthy: every reading is within its limits. There is nothing to do."

# Fields that say nothing about health.
EXTRAS = (
    ("uptime", lambda rng: f"{rng.randint(0, 400)}d"),
    ("up", lambda rng: f"{rng.randint(1, 99)}h"),
    ("fw", lambda rng: f"{rng.randint(1, 9)}.{rng.randint(0, 30)}"),
    ("ip", lambda rng: f"10.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"),
    ("tps", lambda rng: f"{rng.uniform(1, 90):.1f}"),
    ("users", lambda rng: str(rng.randint(0, 40))),
    ("rssi", lambda rng: f"-{rng.randint(30, 90)}dBm"),
    ("seq", lambda rng: str(rng.randint(1, 9999))),
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
    few = gauge.name in ("fan", "certificate", "disk", "memory")
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
            f"{gauge.name.replace('_', ' ')} {value} {'bad' if gauge.fault(float(value)) else 'ok'}"
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
    if rng.random() < 0.05:
        return json_line(rng, report.name, fields)
    between = rng.choices((" ", ", ", " | ", "; ", ","), (12, 3, 1, 1, 1))[0]
    equals = rng.choices(("=", ": ", ":", " ", " = "), (12, 2, 2, 1, 1))[0]
    gap = " " if rng.random() < 0.12 else ""
    shout = rng.random() < 0.03
    parts = []
    for key, unit, value in fields:
        key = key.upper() if shout else key
        parts.append(f"{key}{equals}{value}{gap if unit.isalpha() else ''}{unit}")
    body = between.join(parts)
    if report.name is None:
        return body
    before = rng.choices(("", "device=", "host=", "[", "host ", "device "), (16, 1, 1, 1, 1, 1))[0]
    after = {"[": "] "}.get(before) or rng.choices((" ", ": ", between), (10, 3, 2))[0]
    return f"{before}{report.name}{after}{body}"


def spelling(rng: Random, gauge: Gauge) -> tuple[str, str]:
    key, unit = rng.choices(gauge.keys, (3,) + (1,) * (len(gauge.keys) - 1))[0]
    if unit == "C" and rng.random() < 0.1:
        unit = "°C"
    elif unit and rng.random() < 0.08:
        unit = ""
    return key, unit


def json_line(rng: Random, name: str | None, fields: list[tuple[str, str, str]]) -> str:
    space = rng.choice(("", " "))
    pairs = [f'"{rng.choice(("device", "host", "name"))}":{space}"{name}"'] if name else []
    for key, _, value in fields:
        number = re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", value)
        pairs.append(f'"{key}":{space}{value}' if number else f'"{key}":{space}"{value}"')
    return "{" + f",{space}".join(pairs) + "}"


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
