"""Sample texts and questions, on which speed and agreement are measured where there is no data."""

SENTENCES = (
    "How are you?",
    "The weather is nice today.",
    "I would like a cup of coffee, please.",
    "She lives in a small town near the sea.",
    "Can you tell me where the station is?",
    "We have been waiting for the bus for half an hour.",
    "My brother bought a new bicycle last week.",
    "If it rains tomorrow, we will stay at home.",
    "The children were playing in the garden when I arrived.",
    "He did not know what to say.",
    "This book was written more than a hundred years ago.",
    "Thank you very much for your help.",
)

_WALK = (
    "Anna lives in a small town near the sea. Every morning at seven she walks along the beach with her dog, a brown spaniel called Oscar. "
    "On Sundays her brother Paul comes with them, and they have breakfast at the old lighthouse, which was built in 1884."
)
_BRIDGE = (
    "The bridge over the river was opened in May 1932 after four years of work. It is 503 metres long and carries trains, cars and people "
    "on foot. About 160,000 vehicles cross it each day. Its steel came from England, its stone from a quarry in the south."
)
QUESTIONS = tuple(
    {"question": question, "context": context}
    for context, questions in (
        (_WALK, ("Where does Anna live?", "What is the dog called?", "Who comes along on Sundays?", "When was the lighthouse built?")),
        (
            _BRIDGE,
            ("When was the bridge opened?", "How long is the bridge?", "Where did the steel come from?", "What crosses it each day?"),
        ),
    )
    for question in questions
)
