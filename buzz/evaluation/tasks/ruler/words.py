"""Plain English words, for keys that no text has and for lists of words: no word twice, none but lower-case letters."""

from __future__ import annotations

_ADJECTIVES = """
able amber ample ancient autumn bitter blunt bold brave brief bright brisk bronze calm careful cheerful clever cloudy
coastal common cosmic costly cozy crisp curious daily damp dapper dark dear deep dense distant dusty eager early
earnest eastern easy elegant empty endless faint fair faithful famous fancy fertile fierce final firm fluent foggy
fond formal fragile frank fresh frosty frugal gentle giant glad gloomy golden graceful grand grave hasty hearty heavy
hidden hollow honest humble hungry icy idle inner ivory jolly keen kind large lazy lively lofty lonely loud loyal
lucky major mellow merry mighty mild minor misty modern modest muddy narrow native neat nimble noble northern novel
obvious odd olive open orderly outer pale patient peaceful plain pleasant polite precise proud pure quaint quick quiet
rapid rare ready regal remote ripe robust rough round royal rural rusty sandy scarlet secret sharp shiny shy silent
silver simple sincere sleepy slender smooth snowy sober solar solid southern spare stable steady steep stern stout
subtle sudden sunny swift tall tame tender thirsty thorough thrifty tidy tiny tranquil upper urban useful vacant vague
vast velvet violet vivid warm wealthy weary western wild windy winter wise witty wooden worthy young zealous
"""
_NOUNS = """
acorn actor airport alley almond anchor ankle antler apple apron arch arrow artist atlas attic author bacon badge
baker balcony balloon bamboo banana banjo bank barley barn barrel basin basket beach beacon beard beaver bench berry
bicycle blanket blossom boat bonnet book border bottle boulder branch bread bridge broom bucket buckle butter button
cabin cable camel camera canal candle canoe canvas canyon captain carpet carrot castle cattle cavern cedar cellar
chain chair chalk chapel cherry chess chimney cider circus clay cliff clinic clock clover coach cobble coffee collar
comet compass copper coral cork cotton cousin cradle crane crater cricket crown crystal cupboard curtain cushion dairy
dagger daisy dancer deer desert desk diary dinner doctor dolphin donkey door dragon drawer dream drum eagle easel echo
elbow engine envelope evening falcon farmer feather fence ferry fiddle field finger flag flame flute forest fork
fossil fountain fox frame garden garlic gate ginger giraffe glacier glove goat goose grain granite grape guitar hammer
hamster harbor harp harvest hat hawk hazel helmet hermit heron hill honey hornet horse hotel island jacket jaguar
jewel journal judge jungle kettle kitchen kitten knight ladder lagoon lake lamp lantern lawyer leather lemon leopard
letter library lily linen lion lizard lobster locket lumber magnet mango mantle maple marble market meadow medal melon
mirror monkey mountain mouse museum mustard napkin nephew nest notebook nurse oak oasis ocean onion orchard organ
otter oven owl oyster paddle painter palace panda paper parcel parrot pasture peanut pebble pelican pencil pepper
piano picture pigeon pillow pilot pine pirate planet plate plum pocket poet pony poplar porch potato prairie prince
pumpkin puppet quarry quilt rabbit raccoon radio raft rainbow raven ribbon rice river robin rocket roof rope rose
saddle sailor salad salmon sandal satchel sauce scarf school scissors season shadow shark sheep shelf shell shovel
shower singer sister skate sleeve snail soap soldier spade sparrow spider spinach spoon squirrel stable staircase
statue stocking stone stove street sugar summer swan table tailor teacher temple tent theater thimble thunder tiger
timber tomato tower tractor train trumpet tulip tunnel turkey turtle uncle valley vase village vinegar violin vulture
wagon wallet walnut walrus water weaver whale wheat wheel whistle widow willow window wolf wool yard yacht zebra
"""
_VERBS = """
accept admire adopt advise agree allow answer appear argue arrive assist attend bake balance bathe become begin
believe borrow bounce breathe bring build bury carry catch celebrate chase choose clap clean climb collect combine
compare complain confess consider cook count cross dance decide declare defend deliver describe destroy discover
divide double drift drive earn employ enjoy enter escape examine expect explain explore fasten fetch finish float
follow forget forgive gather give glow greet grow guess handle happen hatch heal hide hike hope hunt imagine improve
include inform inspect invite join juggle jump kneel knit knock laugh launch lead learn lend lift listen manage marry
measure melt mend mix mourn move notice obey observe offer order paint perform persuade plant play polish ponder pour
praise prepare pretend promise protect punish push question realize receive recite refuse remain remember remind
repair repeat reply rescue retire return reveal roast rub sail scatter scold search seem select sell serve settle
share shiver shout sing sketch sleep smile solve speak spell spend squeeze stretch study succeed suggest supply
surprise swim teach tease tell thank think throw tickle travel tremble trust understand unite untie vanish visit
wander warn wash watch weave welcome whisper wonder work worry wrap write yawn
"""

ADJECTIVES = _ADJECTIVES.split()
NOUNS = _NOUNS.split()
VERBS = _VERBS.split()
WORDS = list(dict.fromkeys([*NOUNS, *ADJECTIVES, *VERBS]))  # a noun and an adjective may be one word
