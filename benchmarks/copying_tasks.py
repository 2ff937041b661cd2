"""Chats, and tasks whose answers repeat much of their prompt: edits, quotes and questions over texts of ten subjects."""

CHATS = [
    "What is the capital of France, and what is it known for?",
    "Explain why the sky is blue to a child.",
    "Give me three ideas for a rainy afternoon.",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "How do I boil an egg so that the yolk stays soft?",
    "What is the difference between a virus and a bacterium?",
    "Write a polite message to a neighbour whose dog barks at night.",
    "List five habits that help people sleep better and say why.",
    "What happened to the dinosaurs?",
    "Explain what a budget is and how to make one.",
]
TEXTS = {
    "the library": "The library of Halden opens at nine in the morning and closes at seven in the evening. On Sundays it stays closed. "
    "Members borrow up to eight books for four weeks. Whoever returns a book late pays twenty cents for each day. "
    "The reading room on the second floor has forty seats and a view of the river.",
    "the bridge": "The old bridge across the Mara was built in 1874 by the engineer Otto Lindner. It is 212 metres long and rests on five "
    "stone piers. In the flood of 1931 two of the piers were washed away. The town rebuilt them within eleven months. "
    "Today only walkers and cyclists may use the bridge.",
    "the bakery": "Mrs. Alvarez has baked bread in our street since 1989. She gets up at three in the morning and lights the oven herself. "
    "Her rye bread rests for eighteen hours before it is baked. Most customers come before seven. "
    "On Saturdays she sells a plum cake that her grandmother invented.",
    "the telescope": "The new telescope stands on a mountain in Chile at a height of 2,640 metres. Its mirror is 8.4 metres wide, weighing "
    "seventeen tons. Every night it takes about a thousand pictures of the sky. Computers compare them with those of the nights before. "
    "Whatever moves or changes its brightness is reported within a minute.",
    "the whale": "The grey whale swims up to twenty thousand kilometres a year, farther than any other mammal. It spends the summer in the "
    "cold waters of the north, where it eats small animals from the mud. In autumn it swims south to warm lagoons. "
    "There the calves are born in January. A calf drinks two hundred litres of milk a day.",
    "the minutes": "The meeting began at 10:15. Dana reported that the warehouse in Leeds is finished. Tom asked for two more drivers from "
    "the first of March. The board agreed to pay for one driver now and for another in June. "
    "Priya will write to the insurance company by Friday. The next meeting is on the ninth of April.",
    "the recipe": "Peel one kilogram of potatoes and cut them into thin slices. Rub a dish with garlic and butter. Lay the slices into the "
    "dish and salt every layer. Pour half a litre of cream over them. Bake the dish at 180 degrees for one hour. "
    "Let it rest for ten minutes before you serve it.",
    "the letter": "Dear Mr. Okafor, thank you for your order of the third of May. The blue chairs leave on Monday. The round table is "
    "out of stock until the end of the month. We can send you the square table at the same price. "
    "Please tell us by Thursday which one you would like. Kind regards, Ella Brandt.",
    "the rules": "Visitors register at the gate and wear their badge at all times. Children under twelve come with an adult. Nobody enters "
    "hall three without a helmet. Photographs are allowed in the garden only. "
    "Dogs wait outside. In case of fire everybody leaves by the green doors and meets at the fountain.",
    "the river": "The Orne rises in the hills near Saint-Paul and flows north for 170 kilometres. It passes four towns and two lakes. "
    "Salmon came back to the river in 2008 after a paper mill was closed. Anglers may catch two fish a day. "
    "Between November and February fishing is not allowed at all.",
}
ASKED = [
    "Repeat the following text word for word, but put every number in brackets.\n\n{text}",
    "{text}\n\nWhat does this text say about {subject}? Answer with its own sentences, and give every number.",
    "Here is a text about {subject}.\n\n{text}\n\nSummarize it by quoting its most important sentences word for word.",
]
COPYING = [asked.format(text=text, subject=subject) for subject, text in TEXTS.items() for asked in ASKED]
