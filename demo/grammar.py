"""The corpus: seeded conversations, in a training split and a held-out split that share no device name and no question.

Held out are one name in ten, one question in five, one off-topic text in five and one faulty value in eight.
`python grammar.py` prints some of it.
"""

import itertools
import string
import sys
from dataclasses import dataclass
from random import Random

import questions
import telemetry
from telemetry import held_out

QUESTION_SHARE = 5

Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class Conversation:
    """Turns of (role, text), ending with the assistant. `reports` holds a Report for every assistant turn about one."""

    kind: str
    turns: Turns
    reports: tuple[telemetry.Report | None, ...]


SYSTEM = (
    "You are a helpful assistant.", "You are dunlin-demo.", "Be brief.", "You watch over edge devices.", "Answer in English.",
    "You are a helpful, honest assistant. Answer the user's questions as well as you can.", "You are an expert.",
    "You are an operator's assistant. Say what is wrong and what to do.", "Keep answers short.", "Do not make things up.",
)


# What conversations are about, in shares. The first lessons leave out what takes more than one line.
ALL_SUBJECTS = {
    "telemetry": 36, "study": 14, "each reading": 5, "which device": 3, "question": 24, "off topic": 7, "dialogue": 11,
}
FIRST_SUBJECTS = {"telemetry": 45, "study": 20, "which device": 10, "question": 20, "off topic": 5}


class Corpus:
    """One split. Every method draws from the generator it is given and from nothing else."""

    def __init__(self, want_held_out: bool):
        self.want_held_out = want_held_out
        self.readings_max, self.shares = telemetry.READINGS_MAX, ALL_SUBJECTS
        keep = lambda text: held_out(text, QUESTION_SHARE) == want_held_out
        self.questions = {t.name: list(filter(keep, t.questions())) for t in questions.TOPICS}
        self.answers = {t.name: t.answer for t in questions.TOPICS}
        frames = itertools.product(questions.FRAMES, questions.SUBJECTS)
        self.framed = [text for frame, subject in frames if keep(text := frame.format(subject, "tea"))]
        self.lookalikes = [t for p in questions.LOOKALIKES for t in questions.expand(p) if keep(t)]

    def conversation(self, rng: Random) -> Conversation:
        return self.of_kind(rng, rng.choices(list(self.shares), self.shares.values())[0])

    def of_kind(self, rng: Random, kind: str) -> Conversation:
        if kind == "dialogue":
            return self.dialogue(rng)
        if kind == "study":
            return self.study(rng)
        user, answer, report = {
            "telemetry": self.telemetry, "each reading": self.each_reading, "which device": self.which_device,
            "question": self.question, "off topic": self.off_topic,
        }[kind](rng)
        return Conversation(kind, [*self.system(rng), ("user", user), ("assistant", answer)], (report,))

    def dialogue(self, rng: Random) -> Conversation:
        """Two to four turns; a telemetry turn may be followed by a question about it."""
        turns, reports = self.system(rng), []
        for _ in range(rng.choices((2, 3, 4), (6, 3, 1))[0]):
            kinds = (self.telemetry, self.question, self.off_topic)
            user, answer, report = rng.choices(kinds, (5, 4, 1))[0](rng)
            turns += [("user", user), ("assistant", answer)]
            reports.append(report)
            if report and rng.random() < 0.5:
                ask, reply = rng.choice((
                    (telemetry.FIRST_STEP, report.first_step),
                    (telemetry.WHICH_DEVICE, report.which_device),
                    (telemetry.EACH_READING, report.each_reading),
                ))
                turns += [("user", roughen(rng, rng.choice(ask))), ("assistant", reply())]
                reports.append(None)
        return Conversation("dialogue", turns, tuple(reports))

    def study(self, rng: Random) -> Conversation:
        """One line, and all that can be asked about it, in any order."""
        report = telemetry.a_report(rng, self.want_held_out, self.readings_max)
        line = telemetry.line_of(rng, report)
        asked = [
            (telemetry.WHAT_IS_WRONG, report.answer),
            (telemetry.EACH_READING, report.each_reading),
            (telemetry.FIRST_STEP, report.first_step),
            (telemetry.WHICH_DEVICE, report.which_device),
        ]
        rng.shuffle(asked)
        # The line alone asks what is wrong, so that question may come first without words.
        turns = self.system(rng)
        for i, (ask, reply) in enumerate(asked):
            text = roughen(rng, rng.choice(ask))
            if i == 0:
                bare = ask is telemetry.WHAT_IS_WRONG and rng.random() < 0.7
                text = line if bare else f"{text}{rng.choice((' ', chr(10)))}{line}"
            turns += [("user", text), ("assistant", reply())]
        return Conversation("study", turns, (report, *[None] * (len(asked) - 1)))

    def system(self, rng: Random) -> Turns:
        return [("system", rng.choice(SYSTEM))] if rng.random() < 0.12 else []

    def telemetry(self, rng: Random):
        report = telemetry.a_report(rng, self.want_held_out, self.readings_max)
        line = telemetry.line_of(rng, report)
        wrapped = rng.choice(telemetry.WRAPPERS).format(line) if rng.random() < 0.3 else line
        return wrapped, report.answer(), report

    def each_reading(self, rng: Random):
        return self.asked(rng, telemetry.EACH_READING, telemetry.Report.each_reading)

    def which_device(self, rng: Random):
        return self.asked(rng, telemetry.WHICH_DEVICE, telemetry.Report.which_device)

    def asked(self, rng: Random, ask, reply):
        """A line with a question of its own before or after it."""
        report = telemetry.a_report(rng, self.want_held_out, self.readings_max)
        parts = [roughen(rng, rng.choice(ask)), telemetry.line_of(rng, report)]
        if rng.random() < 0.3:
            parts.reverse()
        return rng.choice((" ", "\n")).join(parts), reply(report), report

    def question(self, rng: Random):
        topic = rng.choice([name for name, texts in self.questions.items() if texts])
        text = dress(rng, rng.choice(self.questions[topic]), greet=topic not in ("hello", "thanks", "bye"))
        return text, self.answers[topic], None

    def off_topic(self, rng: Random):
        text = rng.choice(self.framed if rng.random() < 0.5 else self.lookalikes)
        return dress(rng, text, greet=True), questions.OFF_TOPIC, None


def dress(rng: Random, text: str, greet: bool) -> str:
    """The question as people type it: a greeting before it, case, a typo, no question mark."""
    if greet and rng.random() < 0.15:
        text = rng.choice(("hi, ", "hello, ", "hey, ", "please: ", "quick question: ", "ok, ", "and ", "so ", "tell me, ")) + text
    return roughen(rng, text)


def roughen(rng: Random, text: str) -> str:
    way = rng.random()
    if way < 0.35:
        text = text[0].upper() + text[1:]
    elif way < 0.37:
        text = text.upper()
    elif way < 0.50:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    if rng.random() < 0.08:
        text = text.replace("dunlin", "Dunlin")
    if rng.random() < 0.08:
        text = mistype(rng, text)
    return text


def mistype(rng: Random, text: str) -> str:
    """One letter dropped, doubled or swapped inside a word of five letters or more."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and all(c in string.ascii_letters for c in word)]
    if not long:
        return text
    i = rng.choice(long)
    word, at = words[i], rng.randint(1, len(words[i]) - 2)
    words[i] = rng.choice((
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    ))
    return " ".join(words)


if __name__ == "__main__":
    corpus, rng = Corpus(want_held_out="--held-out" in sys.argv), Random(0)
    for _ in range(20):
        for role, text in corpus.conversation(rng).turns:
            print(f"{role:>9}: {text}")
        print()
