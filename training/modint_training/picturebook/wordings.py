"""Every wording of the picture-book: questions, captions, notes and passages; what is kept out stands apart.

Slots of a thing: {a} "a fox", {n} "fox", {N} "Fox", {the} "the fox", {file} "palm_tree", {is_} "is" or
"are", {this_is} "This is" or "These are", {kind} "animal". Two things have {a} and {b}, {n_a} and {n_b}, ...
"""

from dataclasses import dataclass

from modint_training.picturebook.things import Thing


@dataclass(frozen=True)
class Wordings:
    """Ways to say one thing; no training sees those that are kept out."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def of(self, *, held_out: bool) -> tuple[str, ...]:
        """The ones kept out, if asked for and if there are any, else the trained ones."""
        return self.held_out if held_out and self.held_out else self.trained


def say(template: str, thing: Thing, **more: str) -> str:
    """The template with its slots filled."""
    name = thing.name
    return template.format(
        a=thing.a,
        n=name,
        N=name[0].upper() + name[1:],
        the=thing.the,
        file=name.replace(" ", "_"),
        hashtag=name.replace(" ", ""),
        kind=KINDS[thing.category],
        these={"many": "these"}.get(thing.number, "this"),
        this_is="These are" if thing.number == "many" else "This is",
        is_this="Are these" if thing.number == "many" else "Is this",
        is_=thing.be,
        Is=thing.be.capitalize(),
        look="looks" if thing.be == "is" else "look",
        **more,
    )


# What a category is called in a question.
KINDS = {
    **{"animal": "animal", "food": "food", "drink": "drink", "vehicle": "vehicle", "plant": "plant"},
    **{"clothing": "piece of clothing", "musical instrument": "musical instrument", "tool": "tool"},
    **{"object": "object", "sport": "thing", "place": "thing"},
}

OPEN = Wordings(
    (
        "What is in the picture?",
        "What's in this image?",
        "what is this",
        "What do you see?",
        "What do you see in the picture?",
        "What can you see in this image?",
        "What does the picture show?",
        "What does this image show?",
        "Name what is in the picture.",
        "Tell me what this is.",
        "What am I looking at?",
        "Can you tell me what's in this picture?",
        "What has been drawn here?",
        "Please say what the picture shows.",
        "Identify the thing in the image.",
        "What would you call this?",
        "What's this a picture of?",
        "which thing is shown",
        "Which thing is in the picture?",
        "I can't make it out. What is in the picture?",
        "My screen is tiny: what does the image show?",
        "Say what you see in the image.",
        "What is depicted?",
        "What is shown here?",
        "Do you know what this picture shows?",
        "pic shows what?",
        "Hey, what is that in the picture?",
        "Look at the image. What is it?",
        "Which {kind} is this?",
        "What {kind} do you see?",
        "Which {kind} is in the picture?",
        "Which {kind} does the picture show?",
        "Name the {kind} in the picture.",
        "Tell me which {kind} is shown in the image.",
        "What sort of {kind} is in this image?",
    ),
    (
        "What is the picture of?",
        "Have a look at the drawing: what is it?",
        "Could you name the thing that is drawn here?",
        "Which {kind} can be seen here?",
        "What's that in the photo?",
    ),
)
BRIEFLY = Wordings(
    (
        "",
        "",
        "",
        "One word.",
        "Answer in one or two words.",
        "Just the name.",
        "Only the name, please.",
        "Keep it short.",
        "Answer briefly.",
        "No explanation.",
        "Reply with the name only.",
    ),
    ("Be brief.", "A word or two will do."),
)
YES_NO = Wordings(
    (
        "{Is} there {a} in the picture?",
        "{Is} there {a} in this image?",
        "Does the picture show {a}?",
        "Does this image show {a}?",
        "{is_this} {a}?",
        "Do you see {a}?",
        "Do you see {a} in the picture?",
        "Can you see {a} in the image?",
        "{Is} {a} shown here?",
        "{is_this} {a} in the picture?",
        "Yes or no: does the image show {a}?",
        "{a} in the picture?",
        "Has somebody drawn {a} here?",
        "Look at the picture. {Is} there {a} in it?",
        "I am looking for {a}. Does the picture show that?",
        "Tell me whether the picture shows {a}.",
        "Check the image: {is_} there {a} in it?",
        "Do we have {a} in this picture?",
        "Does the image contain {a}?",
    ),
    (
        "Would you say that the picture shows {a}?",
        "Can {a} be seen in the picture?",
        "Did they draw {a} here?",
    ),
)
YES_OR_NO = Wordings(
    ("", "", "Yes or no?", "Answer yes or no.", "Just yes or no.", "Reply with yes or no."),
    ("Please answer with yes or no.",),
)
LETTERED = Wordings(
    (
        "What is in the picture?",
        "What does the image show?",
        "Which of these is in the picture?",
        "Which of these is shown?",
        "Pick what the picture shows.",
        "Which answer fits the picture?",
        "What is this?",
        "What do you see?",
        "Select what you see in the image.",
        "Which one is in the image?",
        "What has been drawn here?",
        "Which word fits the picture best?",
    ),
    ("Choose the option that matches the picture.", "Which of the answers is right for this photo?"),
)
LETTER = Wordings(
    (
        "Answer with the letter only.",
        "Letter only.",
        "Give the letter.",
        "Which letter?",
        "Answer with a letter.",
        "Just the letter, please.",
    ),
    ("Reply with the letter of your choice.",),
)
OPTION_STYLES = ("{letter}. {text}", "{letter}) {text}", "({letter}) {text}")
WHICH_OF = Wordings(
    (
        "Which of these is in the picture: {options}?",
        "Is it {options} that you see in the picture?",
        "What does the picture show, {options}?",
        "{options}: which one is in the image?",
        "The picture shows one of these. Which? {options}?",
        "Is the picture of {options}?",
        "Choose one: {options}. Which is in the picture?",
        "Do you see {options} in this image?",
    ),
    ("Would you say the drawing shows {options}?",),
)
CATEGORY = Wordings(
    (
        "What kind of thing is in the picture: {options}?",
        "Does the picture show {options}?",
        "Is the thing in the picture {options}?",
        "What is shown, {options}?",
        "Sort this picture: {options}?",
        "Which group does the thing in the image belong to, {options}?",
        "In which drawer does this picture go: {options}?",
    ),
    ("What do you see here: {options}?",),
)
DESCRIBE = Wordings(
    (
        "Describe the picture in one sentence.",
        "Describe this image.",
        "Write a caption for the picture.",
        "Caption this image.",
        "What is in the picture? Answer in a full sentence.",
        "Give a short description of the image.",
        "describe what you see",
        "Please describe the picture for somebody who cannot see it.",
        "Say in a sentence what the picture shows.",
        "One sentence about the picture, please.",
    ),
    ("How would you describe the image?",),
)
JSON_KEYS = Wordings(("object", "name", "thing", "answer"), ("label",))
JSON = Wordings(
    (
        'What is in the picture? Answer as JSON with the key "{key}".',
        'Return JSON: {{"{key}": ...}} with what the image shows.',
        'Identify the picture. Output only JSON with one key, "{key}".',
        'What does the picture show? Reply in the form {{"{key}": "..."}}.',
        'Fill in {{"{key}": "?"}} for this image. JSON only.',
        'Give me a JSON object with "{key}" set to the thing in the picture.',
        "What is this? Respond with JSON ({key}).",
    ),
    ('Write down what you see as a JSON object whose key is "{key}".',),
)
BESIDE = Wordings(
    (
        "What is in the picture beside {the}?",
        "Apart from {the}, what does the picture show?",
        "There {is_} {a} in the picture. What else?",
        "What else do you see, other than {the}?",
        "Name the other thing in the picture, not {the}.",
    ),
    ("What has been drawn together with {the}?",),
)

# -- captions: half of them are kept out -------------------------------------------------------------

CAPTIONS = Wordings(
    (
        "The picture shows {a}.",
        "Caption: {a}",
        "This is a photo of {a}.",
        "A picture of {a}.",
        "Here we see {a}.",
        "Alt text: {n}",
        "Image description: {a} on a plain background.",
        "Title: {N}",
        "Tag: {n}",
        'The label under it says "{n}".',
        "{this_is} {a}, as anybody will notice.",
        "From the catalogue: {n}, drawn by hand.",
        "A user has uploaded a picture of {a}.",
        "The file is called {file}.jpg.",
        'Somebody has written "{n}" on the back of it.',
        "Note from the archive: the image depicts {a}.",
        "The text beside the picture speaks of {a}.",
        "I was told that the drawing shows {a}.",
        "Sticker no. 14: {n}",
        "Exhibit: {n}. Please do not touch.",
        "The children have painted {a} for the school wall.",
        "You are looking at {a}.",
    ),
    (
        "On this card you find {a}.",
        "img_{file}_final.png",
        "Scan result: {N}",
        "My grandmother sent me this drawing of {a}.",
        'The web page calls the picture "{n}".',
        "What you have before you {is_} simply {a}.",
        "Everyone agreed about this one: {n}.",
        "Printed below the picture: {N}.",
        "In this image there {is_} {a}.",
        "Seller's text: lovely print of {a}, nearly new.",
        "#{hashtag}",
        "The artist has drawn {a} once more.",
        "Keywords: {n}, clip art, colour",
        "Automatic caption (98 % sure): {a}",
        "For readers who cannot see: the picture contains {a}.",
        "Page 7 of the album. It has {a} on it.",
        "Quick reminder that this one shows {a}.",
        "Stock image, {n}, isolated on white",
        "Please find attached a picture of {a}.",
        "The teacher explained that this is what {a} {look} like.",
        "OCR: {N}",
        "We got this postcard with {a} at the fair.",
    ),
)
# Inside the question's own sentence: {q} is the question, begun in small letters.
WITHIN = Wordings(
    (
        'Under the title "{N}" this was printed; {q}',
        "The sender says that it shows {a}, so {q}",
        'With the caption "{n}" in mind, {q}',
        'The shop lists it as "{n}" - {q}',
        'My colleague calls this one "{n}" and I wonder: {q}',
        'It came as "{n}" from the printer, and now: {q}',
    ),
    (
        "People say that this shows {a}, so tell me: {q}",
        'Seeing that it was filed under "{n}", {q}',
        "You have surely read that it is a drawing of {a}; well, {q}",
    ),
)
# An earlier turn of the user, and what the assistant said to it.
EARLIER = Wordings(
    (
        "Hello. {caption} I have a question about it.",
        "{caption}",
        "I will send you a picture. {caption}",
        "Before we begin: {caption}",
    ),
    ("Here is some background. {caption}", "{caption} Remember that, please."),
)
NOTED = Wordings(
    ("Thank you. What would you like to know?", "All right.", "Okay, go ahead.", "Noted."),
    ("Good. Please ask.",),
)
SYSTEM = Wordings(
    (
        "You answer questions about pictures. {caption}",
        "You are a helpful assistant. About the picture of this page: {caption}",
        "Be short and exact. {caption}",
    ),
    ("You work for a picture library. From its files: {caption}",),
)

UNRELATED = Wordings(
    (
        "The meeting has been moved to Thursday.",
        "Our shop is closed over the holidays.",
        "It has been raining since noon.",
        "Remember to water the garden.",
        "The lift is out of order again.",
        "Ticket prices will rise in May.",
        "He has worked here for nine years.",
        "The second chapter is longer than the first.",
        "A new bridge is being built near the harbour.",
        "The password must have at least twelve characters.",
        "She studied law in Lisbon.",
        "The concert starts a little later than planned.",
        "There are no seats left in the front row.",
        "Lunch is served until two.",
        "The river has risen by half a metre.",
        "Please sign both copies of the contract.",
        "Most visitors come in the summer.",
        "The winter was unusually mild.",
        "The parcel was returned to the sender.",
        "My cousin has moved to the coast.",
        "The museum opens an hour earlier on Sundays.",
        "They talked about the weather for a while.",
        "The committee could not agree.",
        "Street parking is free after eight.",
    ),
    (
        "The library will be painted next month.",
        "Nobody answered when I rang this morning.",
        "The village lies north of the lake.",
        "His flight was delayed by three hours.",
        "Membership costs the same as last year.",
        "The recipe takes about forty minutes.",
        "Please keep your receipt.",
        "The road to the south is blocked.",
    ),
)

# -- text that decides ----------------------------------------------------------------------------

PEOPLE = ("Mia", "Leo", "Nora", "Felix", "Ida", "Omar", "Ruth", "Hugo", "Vera", "Amir", "Carla", "Sven")
PEOPLE_HELD_OUT = ("Greta", "Yusuf", "Pablo", "Lucy")
SPOTS = ("kitchen", "hall", "shed", "office", "attic", "cellar", "classroom", "workshop", "garage", "library")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple")
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)

DEEDS = (
    *(("bought", "buy"), ("found", "find"), ("drew", "draw"), ("lost", "lose"), ("sold", "sell")),
    *(("borrowed", "borrow"), ("wanted", "want"), ("brought", "bring"), ("forgot", "forget")),
)
DEEDS_HELD_OUT = (("chose", "choose"), ("ordered", "order"))
DEED_TEXTS = (
    "{p} {did} {a}. {r} {did} {b}.",
    "{r} {did} {b}. {p} {did} {a}.",
    "{p} {did} {a}, and {r} {did} {b}.",
    "{r} {did} {b}, but {p} {did} {a}.",
    "Yesterday {p} {did} {a}. Later {r} {did} {b}.",
)
DEED = Wordings(
    (
        "What did {p} {do}?",
        "Which thing did {p} {do}?",
        "Tell me what {p} {did}.",
        "According to the text, what did {p} {do}?",
        "what was it that {p} {did}?",
        "And {p}? What did {p} {do}?",
        "Do you know what {p} {did}?",
    ),
    ("What was the thing that {p} {did}?",),
)
SPOT_TEXTS = (
    "{The_a} {is_a} in the {x}. {The_b} {is_b} in the {y}.",
    "{The_b} {is_b} in the {y}. {The_a} {is_a} in the {x}.",
    "In the {x} there {is_a} {a}, in the {y} {b}.",
    "{x}: {a}\n{y}: {b}",
    "{y}: {b}\n{x}: {a}",
    "Somebody left {b} in the {y} and {a} in the {x}.",
)
IN_SPOT = Wordings(
    (
        "What is in the {x}?",
        "Which thing is in the {x}?",
        "What can be found in the {x}?",
        "What do they keep in the {x}, by the text?",
        "Name the thing in the {x}.",
        "And in the {x}, what is there?",
    ),
    ("What would you find in the {x}?",),
)
WHERE = Wordings(
    (
        "Where {is_} {the}?",
        "In which room {is_} {the}?",
        "where can I find {the}?",
        "Tell me where {the} {is_}.",
        "I need {the}. Where should I look?",
    ),
    ("Which room {is_} {the} in?",),
)
OWNER_TEXTS = (
    "{p} has {a} and {r} has {b}.",
    "{r} has {b}. {p} has {a}.",
    "{The_a} {belongs_a} to {p}, {the_b} to {r}.",
    "{p}: {a}; {r}: {b}",
)
OWNER = Wordings(
    (
        "Who has {the}?",
        "Who owns {the}?",
        "Tell me who has {the}.",
        "Which person has {the}?",
        "Whose {is_} {the}?",
    ),
    ("Who is the owner of {the}?",),
)
COLOUR_TEXTS = (
    "{p} painted {the_a} {x} and {the_b} {y}.",
    "{The_b} {was_b} painted {y}, {the_a} {x}.",
    "Colours for the play: {a} {x}, {b} {y}.",
)
COLOUR = Wordings(
    (
        "Which colour was chosen for {the}?",
        "What colour did they paint {the}?",
        "By the text, what colour {is_} {the}?",
        "In what colour was {the} painted?",
    ),
    ("What is the colour of {the} in the text?",),
)
PRICE_TEXTS = (
    "{A} {costs_a} {x} euros, {b} {y} euros.",
    "Price list\n{n_b}: {y} euros\n{n_a}: {x} euros",
    "Price list\n{n_a}: {x} euros\n{n_b}: {y} euros",
    "{B} {costs_b} {y} euros. For {a} you pay {x} euros.",
    "{n_a} - {x} euros, {n_b} - {y} euros",
)
PRICE = Wordings(
    (
        "How much {does} {the} cost?",
        "How many euros {does} {the} cost?",
        "What is the price of {the}?",
        "price of {the}?",
        "What do I pay for {the}?",
    ),
    ("How many euros do I need for {the}?",),
)
IN_NUMBERS = Wordings(
    ("", "Just the number.", "Number only.", "Answer with a number."), ("In figures, please.",)
)
MESSAGES = (
    "Hi {p}, could you bring {a} tomorrow? We do not need {the_b} any more. {r}",
    "{p}, please pack {a}. I have {the_b} already. Yours, {r}",
    "From: {r}\nTo: {p}\nPlease look after {the_a}. I take {the_b} with me.",
    "dont bring {the_b}, bring {the_a}! thanks {p} :) {r}",
    "Dear {p}, instead of {b} we would now like to have {a}. Kind regards, {r}",
)
MESSAGE = Wordings(
    (
        "What does {r} want from {p}?",
        "What should {p} see to?",
        "Read the message. Which thing is {p} asked for?",
        "What is {p} asked to take care of?",
        "Which thing does {r} ask {p} for?",
    ),
    ("What is it that {p} is asked for?",),
)
# Passages: text, question about {a}; {b} is named as well.
PASSAGES = (
    (
        "On Saturday {p} and {r} went to the market. It was crowded. They came home with {a}; {b} had been "
        "too expensive.",
        ("What did {p} and {r} come home with?", "What did they take home from the market?"),
    ),
    (
        "When {p} opened the box, there {is_a} {a} in it. {r} had hoped for {b} and laughed.",
        ("What was in the box?", "What did {p} find in the box?"),
    ),
    (
        "The play has two parts. In the first, {r} carries {b} across the stage. In the second, {p} does the "
        "same with {a}. The audience clapped for a long time.",
        ("What does {p} carry?", "What is carried in the second part?"),
    ),
    (
        "{p} wrote a story about {a}. The editor would rather have read one about {b}, but printed it.",
        ("What is the story about?", "What did {p} write about?"),
    ),
    (
        "Last night {r} dreamt of {b}. {p}, who slept badly, dreamt of {a} and woke at five.",
        ("What did {p} dream of?", "Which thing was in the dream of {p}?"),
    ),
    (
        "The prize of the raffle was {a}. {p} won it. Second prize, {b}, went to {r}.",
        ("What did {p} win?", "What was the first prize?"),
    ),
    (
        "For the quiz, {p} had to mime {a} and {r} had to mime {b}. Nobody guessed either.",
        ("What did {p} have to mime?", "Which thing was it for {p}?"),
    ),
)
PASSAGES_HELD_OUT = (
    (
        "At the lost property office, {r} asked for {b}. The clerk shook his head and showed {a} instead.",
        ("What did the clerk show?",),
    ),
    (
        "{p} has a new stamp with {a} on it. On the one of {r} you see {b}.",
        ("What is on the stamp of {p}?",),
    ),
)
BOXES = Wordings(
    (
        "What is in box {k}?",
        "Which thing is in box {k}?",
        "box {k}, what is in there?",
        "Name what box {k} holds.",
    ),
    ("What does box {k} hold?",),
)
SUMS = Wordings(
    (
        "What is {x} + {y}?",
        "What is {x} plus {y}?",
        "How much is {x} plus {y}?",
        "{x} + {y} = ?",
        "add {x} and {y}",
        "There are {x} coins in one pocket and {y} in the other. How many coins is that?",
        "{p} has {x} stamps and gets {y} more. How many are there now?",
        "I walked {x} miles and then {y} more. How many miles in all?",
    ),
    ("What do {x} and {y} make together?", "{p} read {x} pages, then another {y}. How many pages is that?"),
)
# What only the named thing does or has; asked with others beside it.
KNOWLEDGE = (
    ("dog", "barks"), ("bee", "lives in a hive"), ("zebra", "has black and white stripes"),
    ("elephant", "has a trunk"), ("snail", "carries its house on its back"), ("bat", "sleeps upside down"),
    ("kangaroo", "has a pouch for its young"), ("giraffe", "has a very long neck"), ("camel", "has a hump"),
    ("spider", "spins a web"), ("rooster", "crows in the morning"), ("hedgehog", "is covered in spines"),
    ("octopus", "has eight arms"), ("cow", "gives us milk"), ("penguin", "is a bird and cannot fly"),
    ("frog", "begins life as a tadpole"), ("squirrel", "hides nuts for the winter"),
    ("shark", "has rows of sharp teeth and lives in the sea"), ("banana", "is long, yellow and peeled"),
    ("grapes", "are made into wine"), ("honey", "is made by bees"), ("popcorn", "is eaten at the cinema"),
    ("ambulance", "takes people to hospital"), ("fire engine", "puts out fires"),
    ("tractor", "works on the fields"), ("bicycle", "has pedals"), ("rocket", "flies into space"),
    ("helicopter", "has rotor blades"), ("cactus", "grows in the desert"),
    ("umbrella", "keeps off the rain"), ("key", "opens a lock"), ("scissors", "are used to cut paper"),
    ("watch", "is worn on the wrist"), ("camera", "takes photographs"), ("bed", "is what people sleep in"),
    ("candle", "has a wick"), ("gloves", "keep your hands warm"), ("glasses", "help people to see"),
    ("crown", "is worn by a king"), ("hammer", "drives in nails"), ("saw", "cuts wood"),
    ("ladder", "is climbed step by step"), ("violin", "is played with a bow"),
    ("drum", "is beaten with sticks"), ("trumpet", "is blown and made of brass"),
    ("pencil", "is used to write"), ("book", "is read page by page"),
    ("newspaper", "appears every morning"), ("microscope", "makes tiny things large"),
    ("toothbrush", "is used in the bathroom twice a day"), ("broom", "sweeps the floor"),
    ("traffic light", "turns red and green"), ("alarm clock", "wakes people up"),
    ("moon", "shines at night"), ("snowman", "melts in the sun"), ("volcano", "spits lava"),
    ("rainbow", "has seven colours"), ("tent", "is slept in by campers"),
    ("castle", "has towers and a drawbridge"), ("dice", "is thrown in games of chance"),
    ("fire extinguisher", "hangs on the wall in case of fire"),
)  # fmt: skip
WHICH_KNOWN = Wordings(
    (
        "Which of these {does}: {options}?",
        "Which one {does}: {options}?",
        "{options}: which of them {does}?",
        "One of these {does}. Which one, {options}?",
    ),
    ("Of {options}, which one {does}?",),
)

# -- text and picture together ---------------------------------------------------------------------

PRICE_SHOWN = Wordings(
    (
        "How much does the thing in the picture cost?",
        "What is the price of what you see in the picture?",
        "How many euros for the thing in the image?",
        "I want what is in the picture. How much is that?",
        "Look at the picture and the list: what does it cost?",
        "price of the thing shown?",
        "What do I pay for the thing in the picture?",
    ),
    ("What would the thing in the photo cost me?",),
)
NOTES = (
    "Shopping list: {list}",
    "Note: please bring {list}.",
    "To buy\n{lines}",
    "We still need {list}.",
    "On the note: {list}",
)
ON_NOTE = Wordings(
    (
        "Is the thing in the picture on the list?",
        "Was this asked for?",
        "Does the note ask for what is in the picture?",
        "Is what you see in the picture among the things asked for?",
        "Do we need the thing in the image, by the note?",
        "Should I buy the thing in the picture?",
    ),
    ("Does the thing in the photo stand on the note?",),
)
LABELS = (
    'The label on the box says "{n}".',
    "Label: {n}",
    "The parcel is declared as {a}.",
    "According to the delivery note it should be {a}.",
    "Ordered: {a}",
)
FITS_LABEL = Wordings(
    (
        "Does the label fit the picture?",
        "Is the thing in the picture what the label says?",
        "Is the picture of what was announced?",
        "Do text and picture agree?",
        "Does the picture show what the text says?",
        "Is it what it says?",
    ),
    ("Do the words match what you see?",),
)
OWNER_SHOWN = Wordings(
    (
        "Who has the thing in the picture?",
        "Whose is the thing in the picture?",
        "Who owns what you see in the image?",
        "Look at the picture: who has that?",
        "Which person has the thing shown?",
    ),
    ("To whom does the thing in the photo belong?",),
)
WHERE_SHOWN = Wordings(
    (
        "Where is the thing in the picture kept?",
        "In which room is the thing in the picture?",
        "Where do I find what is in the image?",
        "Where does the thing shown belong?",
        "I am looking for the thing in the picture. Which room?",
    ),
    ("Which room is it that holds the thing in the photo?",),
)
FADED = (
    "The print has faded. Its label reads: {n}",
    "Old scan, hardly legible. Archive entry: {a}.",
    "Bad copy of a drawing of {a}.",
    "The photo did not come out well. I took it of {a}.",
    'Damaged picture; on the frame it says "{n}".',
)


def joined(parts: list[str], last: str = "and") -> str:
    """ "a fox, a drum and honey"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}"
