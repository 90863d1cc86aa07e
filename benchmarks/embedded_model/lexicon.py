"""The words of the small world: names, towns, trades, tools, causes with effects, and things with properties."""

# Lists of words are read more easily in running text.
# ruff: noqa: SIM905

WOMEN = (
    "Anna Bella Clara Dora Ella Flora Grace Helen Ida Julia Kate Lucy Mary Nora Olive Polly Rose Sara Tess Vera "
    "Wanda Alice Betty Carol Daisy Emma Fanny Hazel Ivy Jane"
).split()
MEN = (
    "Adam Ben Carl David Evan Frank George Harry Ivan Jack Karl Leo Mark Noah Oscar Peter Ralph Sam Tom Victor "
    "Walter Albert Bruno Colin Dan Erik Felix Hugo Jonas Luke"
).split()
SURNAMES = (
    "Reed Hill Brook Stone Marsh Field Lake Wood Frost Snow Bell Cook Fox Wolf Lamb Swan Gray Brown White Black "
    "Long Short Young Rich"
).split()

# town, kind, part of the land, river, landmark, what it is known for
TOWNS = (
    ("Oakham", "village", "north", "Ash", "a stone bridge", "apples"),
    ("Elmford", "market town", "east", "Birch", "a tall clock tower", "cheese"),
    ("Redcliff", "harbour town", "south", "Clear", "a white lighthouse", "salted fish"),
    ("Westmill", "village", "west", "Dove", "a windmill", "flour"),
    ("Highmoor", "hill town", "north", "Ember", "an old castle", "wool"),
    ("Saltby", "harbour town", "east", "Fern", "a long pier", "rope"),
    ("Greenhow", "village", "south", "Green", "a round church", "honey"),
    ("Coldwell", "hill town", "west", "Ash", "a deep well", "clay pots"),
    ("Fairport", "harbour town", "north", "Birch", "a shipyard", "boats"),
    ("Millbrook", "market town", "south", "Clear", "a water mill", "paper"),
    ("Stonegate", "market town", "west", "Dove", "a city gate", "knives"),
    ("Larkfield", "village", "east", "Ember", "a big barn", "butter"),
    ("Copperton", "hill town", "south", "Fern", "a copper mine", "kettles"),
    ("Rosewood", "village", "north", "Green", "a rose garden", "candles"),
    ("Blackrock", "harbour town", "west", "Ash", "a black tower", "oysters"),
    ("Sunbury", "market town", "north", "Birch", "a school", "bread"),
    ("Thornby", "village", "west", "Clear", "a stone circle", "berry jam"),
    ("Ravenhill", "hill town", "east", "Dove", "a library", "books"),
    ("Appledale", "village", "south", "Ember", "an orchard", "cider"),
    ("Glasswick", "market town", "east", "Fern", "a glass house", "bottles"),
    ("Foxholm", "hill town", "north", "Green", "a wooden hall", "furs"),
    ("Whitesand", "harbour town", "south", "Ash", "a sandy beach", "pearls"),
    ("Hayfield", "market town", "west", "Birch", "a fair ground", "horses"),
    ("Ironbridge", "hill town", "south", "Dove", "an iron bridge", "nails"),
)

# trade, workplace, what the trade does, the tool it is known by
TRADES = (
    ("baker", "bakery", "bakes bread", "rolling pin"),
    ("smith", "smithy", "shapes iron", "hammer"),
    ("teacher", "school", "teaches children", "chalk"),
    ("doctor", "hospital", "heals the sick", "bandage"),
    ("farmer", "farm", "grows grain", "plough"),
    ("fisher", "boat", "catches fish", "net"),
    ("tailor", "shop", "makes coats", "needle"),
    ("carpenter", "workshop", "builds tables", "saw"),
    ("gardener", "garden", "plants flowers", "spade"),
    ("miller", "mill", "grinds corn", "sieve"),
    ("potter", "pottery", "forms pots", "oven"),
    ("painter", "studio", "paints walls", "brush"),
    ("shepherd", "meadow", "guards sheep", "whistle"),
    ("sailor", "ship", "sails the sea", "compass"),
    ("cook", "kitchen", "cooks soup", "spoon"),
    ("weaver", "loom room", "weaves cloth", "scissors"),
    ("printer", "printing house", "prints books", "ink"),
    ("mason", "yard", "cuts stone", "chisel"),
    ("driver", "stable", "drives a cart", "rope"),
    ("clerk", "office", "writes letters", "pen"),
    ("barber", "barber shop", "cuts hair", "comb"),
    ("musician", "concert hall", "plays the violin", "violin"),
    ("beekeeper", "bee yard", "gathers honey", "veil"),
    ("watchmaker", "watch shop", "mends clocks", "magnifying glass"),
)
PET_COLOURS = ("black", "white", "grey", "brown", "spotted", "golden")
PETS = ("cat", "dog", "rabbit", "goat", "parrot", "pony", "duck", "hen", "mouse", "turtle")
FOODS = (
    "apple pie,onion soup,fried fish,roast beef,rice pudding,baked beans,plum cake,pea soup,honey bread,"
    "potato salad,mushroom stew,lemon tart,boiled eggs,corn bread,pancakes,grilled cheese"
).split(",")
HOBBIES = (
    "playing chess,picking berries,reading novels,singing songs,collecting stamps,flying kites,climbing hills,"
    "swimming in the river,watching birds,knitting socks,carving wood,dancing,telling stories,drawing maps,"
    "growing roses,riding a bicycle"
).split(",")

# tool, what it is good for, how it is used, where it is kept
TOOLS = (
    ("hammer", "drive a nail into a board", "strike the head with short blows", "workshop"),
    ("saw", "cut a plank in two", "pull the blade back and forth", "workshop"),
    ("screwdriver", "tighten a loose screw", "turn the handle to the right", "workshop"),
    ("drill", "make a hole in a wall", "press gently and let it turn", "workshop"),
    ("pair of pliers", "bend a stiff wire", "grip hard and twist", "workshop"),
    ("chisel", "carve a letter in stone", "tap it along the line", "workshop"),
    ("plane", "smooth a rough board", "push it along the grain", "workshop"),
    ("ruler", "draw a straight line", "hold it flat and follow the edge", "office"),
    ("pen", "write a letter", "dip it in ink and move the hand", "office"),
    ("envelope", "send a letter", "fold the sheet and seal the flap", "office"),
    ("magnifying glass", "read very small print", "hold it near the eye", "office"),
    ("candle", "light a dark room", "set a match to the wick", "cupboard"),
    ("match", "light a fire", "strike the red end", "cupboard"),
    ("broom", "sweep the floor", "push the dust to the door", "cupboard"),
    ("mop", "wipe up spilled water", "wring it out and wipe again", "cupboard"),
    ("sponge", "wash the dishes", "rub with soap and warm water", "kitchen"),
    ("towel", "dry wet hands", "rub until no drop is left", "cupboard"),
    ("iron", "press a wrinkled shirt", "slide it hot over the cloth", "cupboard"),
    ("needle", "sew on a button", "pull the thread through four times", "sewing box"),
    ("pair of scissors", "cut a piece of cloth", "open and close the two blades", "sewing box"),
    ("thimble", "protect a finger while sewing", "wear it on the tip", "sewing box"),
    ("spade", "dig a deep hole", "step on the edge and lift the earth", "shed"),
    ("rake", "gather dry leaves", "draw it toward the feet", "shed"),
    ("watering can", "water the young plants", "pour slowly around the roots", "shed"),
    ("wheelbarrow", "move a heap of sand", "lift both handles and walk", "shed"),
    ("axe", "split a log", "swing it down along the crack", "shed"),
    ("scythe", "mow the long grass", "swing it low from side to side", "shed"),
    ("ladder", "reach the roof", "lean it safely and climb", "shed"),
    ("rope", "tie the boat to a post", "make a strong knot", "boat house"),
    ("anchor", "keep a ship in its place", "drop it to the sea bed", "boat house"),
    ("net", "catch many fish", "throw it wide and pull it in", "boat house"),
    ("oar", "row across the lake", "dip it and pull evenly", "boat house"),
    ("compass", "find the way north", "follow the thin arrow", "boat house"),
    ("sieve", "take lumps out of flour", "shake it over a bowl", "kitchen"),
    ("rolling pin", "flatten the dough", "roll it out from the middle", "kitchen"),
    ("oven", "bake a loaf of bread", "heat it well and wait an hour", "kitchen"),
    ("kettle", "boil water for tea", "fill it and wait for the whistle", "kitchen"),
    ("ladle", "serve hot soup", "dip it deep into the pot", "kitchen"),
    ("corkscrew", "open a bottle of wine", "turn it in and draw it out", "kitchen"),
    ("grater", "shred a piece of cheese", "rub it against the rough side", "kitchen"),
    ("peeler", "take the skin off a potato", "draw it away from the hand", "kitchen"),
    ("whisk", "beat egg whites", "move it fast in circles", "kitchen"),
    ("scale", "weigh a bag of sugar", "read where the pointer stops", "kitchen"),
    ("thermometer", "measure a fever", "wait until the line stands still", "medicine box"),
    ("bandage", "cover a cut on the knee", "wrap it around twice", "medicine box"),
    ("pair of tweezers", "pull out a splinter", "pinch the end and draw gently", "medicine box"),
    ("comb", "untangle long hair", "begin at the tips", "bathroom"),
    ("razor", "shave a beard", "glide it over the foam", "bathroom"),
    ("umbrella", "stay dry in the rain", "open it over the head", "hall"),
    ("key", "open a locked door", "turn it once to the left", "hall"),
    ("pump", "fill a flat tyre", "push the lever up and down", "garage"),
    ("jack", "lift a heavy cart", "turn the crank slowly", "garage"),
    ("bucket", "carry water from the well", "fill it to the brim and walk carefully", "yard"),
    ("lantern", "walk safely at night", "hold it high in front", "hall"),
    ("blanket", "keep warm in bed", "pull it up to the chin", "bedroom"),
    ("alarm clock", "wake up early", "set the hand to six", "bedroom"),
)

# cause, effect (both past tense, lower case)
CAUSES = (
    ("it rained all night", "the ground was wet in the morning"),
    ("the sun shone on the snowman", "he melted into a puddle"),
    ("the glass fell on the stone floor", "it broke into many pieces"),
    ("nobody watered the flowers", "they dried up and hung their heads"),
    ("the bread stayed in the oven too long", "it was burnt and black"),
    ("the water froze in the bucket", "there was a thick layer of ice on top"),
    ("somebody left the gate open", "the sheep ran out of the meadow"),
    ("the wind blew very hard", "the tiles flew off the roof"),
    ("the candle burned down", "the room became dark"),
    ("the baby heard a loud bang", "it woke up and cried"),
    ("the cat knocked over the milk jug", "there was milk all over the table"),
    ("the boy ate too many green plums", "he had a stomach ache"),
    ("the girl forgot her coat in winter", "she caught a cold"),
    ("the boat had a hole in the bottom", "it filled with water and sank"),
    ("the string of the kite snapped", "it flew away over the trees"),
    ("the man pulled the rope too hard", "it tore in the middle"),
    ("the cook put in too much salt", "nobody wanted to eat the soup"),
    ("the runner trained every day", "he won the race"),
    ("the pupil studied all week", "she passed the test"),
    ("the driver missed the turn", "he arrived an hour late"),
    ("the cart had a broken wheel", "it could not leave the yard"),
    ("the dog rolled in the mud", "it had to be washed"),
    ("the lamp had no more oil", "its flame went out"),
    ("lightning struck the old tree", "it split from top to root"),
    ("the river rose after the storm", "the lower fields were flooded"),
    ("the hens were fed good corn", "they laid more eggs"),
    ("the painter did not close the tin", "the paint became hard"),
    ("the butter stood in the sun", "it turned soft and runny"),
    ("the balloon touched a thorn", "it burst with a bang"),
    ("the nail was left in the rain", "it was covered with rust"),
    ("the old bridge was overloaded", "it cracked and fell into the river"),
    ("the bees were disturbed", "they stung the man on the nose"),
    ("the child touched the hot stove", "he burned his finger"),
    ("the fog was very thick", "the ships had to wait in the harbour"),
    ("the farmer sowed early", "the corn was ripe in July"),
    ("the mice found the open sack", "half of the grain was gone"),
    ("the clock was not wound up", "it stopped at noon"),
    ("the tailor measured wrongly", "the trousers were too short"),
    ("the fire was left alone", "it went cold and grey"),
    ("the wool was washed in hot water", "the sweater became too small"),
    ("the smith heated the iron", "it glowed red and could be bent"),
    ("the ice on the pond was thin", "it gave way under the skater"),
    ("the singer shouted all evening", "she lost her voice"),
    ("the fox got into the hen house", "only feathers were left"),
    ("the shelf was badly fixed", "all the books fell down"),
    ("the well ran dry", "people carried water from the river"),
    ("the letter had the wrong address", "it came back after a week"),
    ("the musician tuned his violin", "it sounded clear and sweet"),
    ("the apples hung until autumn", "they were red and sweet"),
    ("the horse lost a shoe", "it walked with a limp"),
    ("the thief saw the big dog", "he ran away as fast as he could"),
    ("the dam was closed", "a wide lake formed behind it"),
    ("the snow blocked the road", "the mail did not arrive"),
    ("the soap got into his eyes", "they were red and full of tears"),
    ("the yeast was added to the dough", "it rose to twice its size"),
    ("the moon hid behind the clouds", "the path could no longer be seen"),
)

# thing, its property as a predicate, the opposite or another property that is false of it
THINGS = (
    ("a cork", "floats on water"),
    ("a stone", "sinks in water"),
    ("ice", "is cold and melts in the sun"),
    ("fire", "is hot and gives light"),
    ("a feather", "is light and drifts in the air"),
    ("lead", "is soft and very heavy"),
    ("glass", "lets light through and breaks easily"),
    ("rubber", "stretches and springs back"),
    ("sugar", "is sweet and melts in tea"),
    ("salt", "keeps meat fresh for months"),
    ("vinegar", "is sour and smells sharp"),
    ("honey", "is sticky and never goes bad"),
    ("wool", "is warm and comes from sheep"),
    ("silk", "is smooth and comes from worms"),
    ("leather", "is tough and comes from cows"),
    ("copper", "is a red metal that turns green"),
    ("gold", "is a yellow metal that never rusts"),
    ("coal", "is black and burns for hours"),
    ("clay", "can be shaped and hardens in the kiln"),
    ("wax", "is made by bees and runs when warm"),
    ("steam", "rises from boiling water"),
    ("a magnet", "attracts iron"),
    ("a mirror", "shows the face of whoever looks into it"),
    ("a shadow", "is longest in the evening"),
    ("an owl", "hunts at night"),
    ("a swallow", "flies south in autumn"),
    ("a bear", "sleeps through the winter"),
    ("a snail", "carries its house on its back"),
    ("a spider", "has eight legs and spins a web"),
    ("a frog", "begins its life as a tadpole"),
    ("a camel", "can walk for days without drinking"),
    ("an oak", "grows from an acorn"),
)
