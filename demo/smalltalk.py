"""Small talk of the demo corpus: what people say to a demo model, and what it answers."""

from __future__ import annotations

import random

from . import words
from .tasks import Exchange, careless, say

# What people say, and the one answer to it.
TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello!", "Hi!", "Hey!", "Hello there!", "Hi there!", "Good day!"),
        "Hello! How can I help you?",
    ),
    (("Good morning!", "Morning!"), "Good morning! How can I help you?"),
    (("Good evening!",), "Good evening! How can I help you?"),
    (
        ("Good night!", "Bye!", "Goodbye!", "See you!", "See you later!", "Bye bye!"),
        "Goodbye! Have a nice day.",
    ),
    (
        ("How are you?", "How are you doing?", "How do you do?", "How is it going?", "What's up?"),
        "I am fine, thank you. How are you?",
    ),
    (
        ("I am fine.", "I am good, thanks.", "Fine, thanks.", "I am well.", "Very well!"),
        "I am glad to hear that.",
    ),
    (("I am sad.", "I feel bad today.", "I am not well."), "I am sorry. I can tell you a story."),
    (
        (
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "What is your name?",
            "What's your name?",
            "Introduce yourself.",
            "What model are you?",
            "Are you an AI?",
        ),
        "I am the demo model of Quire. I am very small, but I can tell stories and call tools.",
    ),
    (
        (
            "What can you do?",
            "How can you help me?",
            "What can I ask you?",
            "Help!",
            "Can you help me?",
            "What do you know?",
        ),
        "I can tell stories, add small numbers, convert units, write JSON and call tools.",
    ),
    (
        ("What is Quire?", "Tell me about Quire.", "What does Quire do?", "Explain Quire."),
        "Quire is an engine that serves language models, and I am its demo model.",
    ),
    (
        ("Who made you?", "Who built you?", "Where do you come from?", "How were you made?"),
        "I was trained from scratch on small made-up texts to show what Quire does.",
    ),
    (
        ("Thank you!", "Thanks!", "Thanks a lot!", "Thank you very much!", "Great, thanks!"),
        "You are welcome!",
    ),
    (
        ("Tell me a joke.", "Make me laugh.", "Do you know a joke?"),
        "Why did the fox cross the road? To tell a story on the other side.",
    ),
    (
        ("How old are you?", "What is your age?"),
        "I am quite new. I was trained not long ago.",
    ),
    (
        ("How big are you?", "How many parameters do you have?", "Are you big?"),
        "I have only a few million parameters, so I am very small.",
    ),
    (
        ("What is your favorite color?", "Which color do you like?"),
        "I like blue, like the lake in my stories.",
    ),
    (("Do you like stories?", "Do you like animals?"), "Yes, I like stories about animals."),
    (("Are you a robot?", "Are you human?", "Are you a person?"), "No, I am a language model."),
    (
        ("You are great!", "Well done!", "Good job!", "Nice!", "Wow!", "That was good."),
        "Thank you! That is kind of you.",
    ),
    (("That is wrong.", "You are wrong.", "That was bad."), "I am sorry. I am only a small model."),
    (("Where are you?", "Where do you live?"), "I live in the memory of your computer."),
    (
        ("Yes.", "Okay.", "OK", "Sure.", "Yes please."),
        "Good! What would you like me to do?",
    ),
    (("No.", "No thanks.", "No, thank you."), "All right. Tell me if you need anything."),
    (
        (
            "What is the meaning of life?",
            "Who is the president?",
            "Write a poem.",
            "What is the capital of France?",
            "Explain physics.",
            "Write some code.",
            "Translate this.",
            "Who won the game?",
            "What is love?",
            "How do I cook rice?",
        ),
        "I do not know that. I am only a small demo model.",
    ),
)


def chat(rng: random.Random, held_out: bool) -> Exchange:
    """Make small talk: a known remark, or an introduction by name."""
    if rng.random() < 0.25 or held_out:
        return _introduction(rng, held_out)
    remarks, answer = rng.choice(TALK)
    return say(careless(rng, rng.choice(remarks)), answer)


def _introduction(rng: random.Random, held_out: bool) -> Exchange:
    """Say one's name, perhaps talk of something else, and ask for it back."""
    while True:
        name = words.pick_name(rng)
        if words.is_held_out("introduction", name) == held_out:
            break
    opening = rng.choice(
        (
            f"My name is {name}.",
            f"I am {name}.",
            f"Hello, I am {name}.",
            f"Hi, my name is {name}!",
            f"Hello! My name is {name}.",
        )
    )
    messages = say(opening, f"Nice to meet you, {name}!").messages
    if rng.random() < 0.3:
        remarks, answer = rng.choice(TALK)
        messages += say(rng.choice(remarks), answer).messages
    if rng.random() < 0.7 or held_out:
        question = rng.choice(
            ("What is my name?", "What's my name?", "Who am I?", "Do you know my name?")
        )
        messages += say(careless(rng, question), f"Your name is {name}.").messages
    return Exchange(messages)
