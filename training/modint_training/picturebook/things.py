"""The things of the picture-book: what people call them, how they are counted, and which are kept out."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from modint_guard.data.perturb import seeded

Number = Literal["one", "many", "mass"]  # "a fox", "grapes", "honey"

# One line a category: an emoji, the name, and after "=" what else people call it. "*" behind a name marks a
# plural, "~" something that is not counted.
_TABLE = {
    "animal": """
🐶 dog=puppy | 🐱 cat=kitten,kitty | 🐭 mouse | 🐰 rabbit=bunny,hare | 🦊 fox | 🐻 bear
🐼 panda=panda bear | 🐨 koala=koala bear | 🐯 tiger | 🦁 lion | 🐮 cow | 🐷 pig=piglet | 🐸 frog=toad
🐵 monkey | 🦍 gorilla | 🐔 chicken=hen | 🐧 penguin | 🦆 duck | 🦅 eagle | 🦉 owl | 🦇 bat | 🐺 wolf
🐴 horse=pony | 🦄 unicorn | 🐝 bee=honeybee,bumblebee | 🦋 butterfly | 🐌 snail
🐞 ladybug=ladybird,lady beetle | 🐜 ant | 🕷 spider | 🦂 scorpion | 🐢 turtle=tortoise | 🐍 snake
🦎 lizard=gecko | 🦖 dinosaur=T-rex,tyrannosaurus | 🐙 octopus | 🦐 shrimp=prawn | 🦀 crab
🐡 blowfish=pufferfish | 🐬 dolphin | 🐳 whale | 🦈 shark | 🐊 crocodile=alligator | 🦓 zebra | 🐘 elephant
🦏 rhinoceros=rhino | 🐪 camel=dromedary | 🦒 giraffe | 🦘 kangaroo | 🐑 sheep=ewe | 🦌 deer=stag
🐓 rooster=cockerel,cock | 🦃 turkey | 🦚 peacock | 🦜 parrot | 🦢 swan | 🦩 flamingo | 🦝 raccoon=racoon
🦔 hedgehog | 🐿 squirrel=chipmunk | 🐉 dragon
""",
    "food": """
🍎 apple=red apple | 🍐 pear | 🍊 orange=tangerine,mandarin | 🍋 lemon | 🍌 banana | 🍉 watermelon=melon
🍇 grapes* =grape | 🍓 strawberry | 🍒 cherries* =cherry | 🍑 peach | 🥭 mango | 🍍 pineapple | 🥥 coconut
🥝 kiwi=kiwi fruit,kiwifruit | 🍅 tomato | 🍆 eggplant=aubergine | 🥑 avocado | 🥦 broccoli~ | 🥒 cucumber
🌶 chili pepper=chili,hot pepper,chilli,red pepper | 🌽 corn~ =corn cob,maize,ear of corn | 🥕 carrot
🥔 potato | 🥐 croissant | 🍞 bread~ =loaf of bread,loaf | 🥨 pretzel | 🧀 cheese~ | 🥚 egg
🥞 pancakes* =pancake | 🥓 bacon~ | 🍔 hamburger=burger,cheeseburger | 🍟 french fries* =fries,chips
🍕 pizza=slice of pizza,pizza slice | 🥪 sandwich | 🌮 taco | 🌯 burrito=wrap | 🍿 popcorn~ | 🍣 sushi~
🍦 ice cream~ =ice cream cone,soft serve | 🍩 donut=doughnut | 🍪 cookie=biscuit | 🎂 cake=birthday cake
🧁 cupcake=muffin | 🍫 chocolate~ =chocolate bar,bar of chocolate | 🍬 candy~ =sweet,piece of candy
🍭 lollipop | 🍯 honey~ =honey pot,jar of honey,pot of honey | 🥜 peanuts* =peanut
🍄 mushroom=toadstool
""",
    "drink": """
🥛 milk~ =glass of milk | ☕ coffee~ =cup of coffee,tea | 🍺 beer~ =mug of beer,beer mug
🍷 wine~ =glass of wine,red wine,wine glass
""",
    "vehicle": """
🚗 car=automobile,red car | 🚕 taxi=cab | 🚌 bus | 🚑 ambulance | 🚒 fire engine=fire truck,firetruck
🚜 tractor | 🚲 bicycle=bike | 🛴 scooter=kick scooter | 🏍 motorcycle=motorbike
✈ airplane=plane,aeroplane,jet | 🚀 rocket=spaceship | 🚁 helicopter=chopper
⛵ sailboat=sailing boat,boat | 🛶 canoe=kayak | 🛸 flying saucer=UFO
""",
    "plant": """
🌵 cactus | 🌴 palm tree=palm | 🌲 fir tree=evergreen tree,pine tree,evergreen,christmas tree
🌹 rose=red rose | 🌻 sunflower | 🌷 tulip | 🍁 maple leaf=leaf
🍀 clover=four-leaf clover,four leaf clover,shamrock
""",
    "clothing": """
👕 shirt=t-shirt,tee shirt,tshirt | 👖 jeans* =trousers,pants,blue jeans | 👗 dress | 👙 bikini
👑 crown | 🎩 top hat=hat | 👓 glasses* =eyeglasses,spectacles
👠 high heel=high-heeled shoe,high heels,shoe | 🧦 socks* =sock,pair of socks | 🧣 scarf
🧤 gloves* =glove,pair of gloves,mittens | 👜 handbag=purse,bag | 💍 ring=diamond ring
""",
    "musical instrument": """
🎸 guitar=electric guitar | 🎻 violin=fiddle | 🎺 trumpet | 🥁 drum=snare drum
🎹 piano=piano keys,keyboard,musical keyboard | 🎷 saxophone=sax
""",
    "tool": """
🔨 hammer | 🔧 wrench=spanner | ✂ scissors* =pair of scissors | 🔪 knife=kitchen knife
🪓 axe=ax,hatchet | 🪛 screwdriver | 🪚 saw=handsaw | 🪜 ladder
""",
    "object": """
⌚ watch=wristwatch,wrist watch | ☎ telephone=phone,landline phone | 💻 laptop=computer,notebook
📷 camera | 📺 television=tv,tv set,telly | ⏰ alarm clock=clock | 💡 light bulb=bulb,lightbulb,lamp
🔦 flashlight=torch | 🔑 key | 🔒 lock=padlock | 📖 book=open book | 📰 newspaper=paper | ✏ pencil
✉ envelope=letter | 🕯 candle | 🎈 balloon | 🎁 gift=present,wrapped gift,gift box | 🧲 magnet
🔬 microscope | 🔭 telescope | ☂ umbrella | 🪑 chair | 🛏 bed | 🛋 sofa=couch,settee | 🚪 door | 🚽 toilet
🛁 bathtub=bath,tub | 🪥 toothbrush | 🔔 bell | ⚓ anchor | 🏆 trophy=cup,golden cup
💎 diamond=gem,gemstone,jewel | 🧸 teddy bear=teddy | 🧹 broom | 🪣 bucket=pail | 🧺 basket
⏳ hourglass=sand timer | 🎒 backpack=rucksack,school bag | 🧯 fire extinguisher=extinguisher
🚦 traffic light=traffic lights | 🪁 kite | 🎲 dice=die | 🤖 robot
""",
    "sport": """
⚽ soccer ball=football,ball | 🏀 basketball=ball | 🏈 football=american football,rugby ball,ball
🎾 tennis ball=ball | 🎯 dartboard=target,darts board | 🎣 fishing rod=fishing pole | 🛹 skateboard
🛷 sled=sledge,sleigh
""",
    "place": """
🏠 house=home | 🏰 castle | ⛺ tent | 🌋 volcano | 🌈 rainbow | 🌙 moon=crescent moon,half moon,crescent
⭐ star=yellow star | ☀ sun | ☁ cloud | ⛄ snowman | ❄ snowflake | 🔥 fire~ =flame,flames
🌍 globe=earth,planet,planet earth,world | 🎡 ferris wheel=big wheel | ⛲ fountain
""",
}

# Things that people mix up or that are drawn alike: none of a row is a lie about another, nor an option
# beside it.
_ALIKE = (
    "apple, cherries, tomato, peach, mango, orange | mouse, squirrel | dog, wolf, fox | car, taxi",
    "soccer ball, football, basketball, tennis ball | chicken, rooster, turkey",
    "whale, dolphin, shark, blowfish | frog, turtle, lizard, crocodile, dinosaur, dragon",
    "bear, teddy bear | panda, bear, koala | horse, unicorn, zebra, deer | flashlight, light bulb",
    "laptop, piano | cake, cupcake, pancakes | swan, duck, eagle, parrot | burrito, taco, sandwich",
    "beer, coffee, milk, wine | knife, axe, saw | candy, lollipop | monkey, gorilla | rose, tulip",
    "ring, diamond | handbag, backpack, basket | sun, star, sunflower | bucket, basket",
    "shrimp, crab, scorpion | spider, ant, scorpion | sofa, bed, chair | watch, alarm clock",
    "palm tree, fir tree | maple leaf, clover | fire, fire engine, fire extinguisher, candle",
    "ice cream, cupcake | cloud, snowflake, snowman | shirt, dress | hourglass, glasses",
    "bathtub, toilet | strawberry, chili pepper | cucumber, eggplant, avocado, pear",
    "potato, peanuts, coconut, egg, kiwi | bread, sandwich, croissant | cookie, donut",
    "bee, butterfly, ladybug, ant | globe, moon | gift, dice | bicycle, motorcycle, scooter, skateboard",
    "airplane, rocket, helicopter | bus, ambulance, fire engine | flamingo, swan",
    "peacock, parrot, turkey | raccoon, fox, panda | sled, canoe, sailboat | watermelon, kiwi, cucumber",
    "key, lock | screwdriver, hammer, wrench, saw | bacon, cheese | broom, ladder | television, camera",
    "newspaper, book, envelope | trumpet, saxophone | guitar, violin",
    "lemon, corn, banana, mango, honey | cow, sheep, deer | cat, tiger, lion",
)

# Kept out of all training, one of about ten: neither shown, nor named, nor used to fit the tower.
HELD_OUT_NAMES = (
    "koala, gorilla, shrimp, flamingo, raccoon, coconut, pretzel, burrito, pancakes, lollipop, canoe, "
    "clover, high heel, saxophone, axe, sofa, telescope, hourglass, magnet, kite, sled, ferris wheel"
)


@dataclass(frozen=True)
class Thing:
    """Something that can be drawn and named. `others` are names that a reply may use as well; `code` is its
    emoji's code point in hexadecimal, which names its drawings."""

    name: str
    category: str
    number: Number
    others: tuple[str, ...]
    code: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that means it, the usual one first."""
        return (self.name, *self.others)

    @property
    def a(self) -> str:
        """As one speaks of it: "a fox", "an owl", "grapes", "honey"."""
        return f"{article(self.name)} {self.name}" if self.number == "one" else self.name

    @property
    def the(self) -> str:
        """ "the fox"."""
        return f"the {self.name}"

    @property
    def be(self) -> str:
        """The verb that goes with it: "is" or "are"."""
        return "are" if self.number == "many" else "is"

    @property
    def held_out(self) -> bool:
        """Whether no training shows or names it."""
        return self.name in _held_out_names()


def article(name: str) -> str:
    """ "a" or "an", by how the name sounds."""
    sounds_like_a_vowel = name[0].lower() in "aeiou" and not name.startswith(("uni", "uk", "ufo", "UFO"))
    return "an" if sounds_like_a_vowel or name.startswith("hour") else "a"


def _thing(entry: str, category: str) -> Thing:
    emoji, _, rest = entry.strip().partition(" ")
    named, _, others = rest.partition("=")
    named = named.strip()
    number: Number = {"*": "many", "~": "mass"}.get(named[-1], "one")  # type: ignore[assignment]
    names = tuple(other.strip() for other in others.split(",") if other.strip())
    return Thing(named.rstrip("*~"), category, number, names, code_of(emoji))


def code_of(emoji: str) -> str:
    """The code point of an emoji in hexadecimal, without the variation selector."""
    return "-".join(f"{ord(part):x}" for part in emoji if ord(part) != 0xFE0F)


@cache
def _held_out_names() -> frozenset[str]:
    return frozenset(HELD_OUT_NAMES.split(", "))


THINGS: tuple[Thing, ...] = tuple(
    _thing(entry, category)
    for category, lines in _TABLE.items()
    for entry in lines.replace("\n", "|").split("|")
    if entry.strip()
)
NAMED = {thing.name: thing for thing in THINGS}
TRAINED = tuple(thing for thing in THINGS if not thing.held_out)
HELD_OUT = tuple(thing for thing in THINGS if thing.held_out)


@cache
def alike(name: str) -> frozenset[str]:
    """The names of things that may be mixed up with the named one, itself included: drawn alike, or one
    name's words within another's."""
    rows = [row.split(", ") for line in _ALIKE for row in line.split(" | ")]
    mixed = {other for row in rows if name in row for other in row}
    words = {word for other in NAMED[name].names for word in other.lower().split()} - _COMMON_WORDS
    shared = {
        thing.name
        for thing in THINGS
        if words & {word for other in thing.names for word in other.lower().split()}
    }
    return frozenset({name, *mixed, *shared})


_COMMON_WORDS = frozenset(
    {"of", "and", "red", "yellow", "blue", "gold", "golden", "bar", "pair", "glass", "cup", "piece", "big"}
    | {"sand", "ear", "open", "pot", "jar", "tee"}
)


def unlike(thing: Thing, among: Iterable[Thing]) -> list[Thing]:
    """Those that nobody mixes up with `thing`."""
    mixed = alike(thing.name)
    return [other for other in among if other.name not in mixed]


def draw_other(thing: Thing, among: Iterable[Thing], seed: object) -> Thing:
    """Another thing, mostly of the same category, which a lie about `thing` could name."""
    rng = seeded("another thing", seed)
    others = unlike(thing, among)
    near = [other for other in others if other.category == thing.category]
    return rng.choice(near if len(near) > 2 and rng.random() < 0.6 else others)
