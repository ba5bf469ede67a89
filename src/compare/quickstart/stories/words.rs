//! The words the stories are made of.

/// Feminine names, then masculine ones.
pub const SHE: [&str; 26] = [
    "Mara", "Anna", "Lena", "Ida", "Nora", "Tessa", "Ruth", "Clara", "Greta", "Elsie", "Vera",
    "Hazel", "Mina", "Rosa", "Edith", "Willa", "Sofia", "Agnes", "Pia", "Joan", "Olga", "Dora",
    "Fern", "Lucy", "Sara", "Eva",
];
pub const HE: [&str; 26] = [
    "Tom", "Emil", "Oscar", "Jonas", "Peter", "Felix", "Hugo", "Ben", "Anton", "Karl", "Otto",
    "Silas", "Walter", "Finn", "Max", "Leo", "Henry", "Jasper", "Noah", "Paul", "Simon", "Victor",
    "Arlo", "Ned", "Sam", "Theo",
];
pub const ROLES: [&str; 16] = [
    "baker",
    "miller",
    "carpenter",
    "weaver",
    "potter",
    "shepherd",
    "gardener",
    "teacher",
    "tailor",
    "beekeeper",
    "sailor",
    "smith",
    "clockmaker",
    "doctor",
    "painter",
    "farmer",
];
pub const TRAITS: [&str; 14] = [
    "kind", "quiet", "clever", "brave", "stubborn", "cheerful", "patient", "curious", "shy",
    "proud", "careful", "lazy", "clumsy", "serious",
];
/// (preposition, place)
pub const HOMES: [(&str, &str); 12] = [
    ("in", "a village by the sea"),
    ("in", "a small town on a hill"),
    ("on", "a farm near the forest"),
    ("in", "a house beside the river"),
    ("in", "a valley between two mountains"),
    ("in", "a town with a tall tower"),
    ("in", "a harbor full of ships"),
    ("on", "an island with one lighthouse"),
    ("on", "a street behind the market"),
    ("in", "a village at the edge of the moor"),
    ("in", "an inn on the north road"),
    ("in", "a town of narrow streets"),
];
/// (how the story opens, what is said of it at the end)
pub const WEATHER: [(&str, &str); 12] = [
    ("One rainy morning", "The rain had stopped"),
    ("One cold morning", "It was still cold"),
    ("One windy afternoon", "The wind had died down"),
    ("On the first day of spring", "The spring air was mild"),
    ("Early one summer day", "The summer sky was full of stars"),
    ("Late in autumn", "The autumn leaves lay still"),
    ("One snowy day", "The snow was falling again"),
    ("One foggy morning", "The fog had lifted"),
    ("The day before the fair", "Everyone was ready for the fair"),
    ("On a bright Sunday", "The Sunday bells were ringing"),
    ("After a long storm", "The storm was forgotten"),
    ("On a hot day in July", "The hot day had cooled at last"),
];

/// A thing that is counted: singular, plural, whether it can be eaten.
pub type Item = (&'static str, &'static str, bool);
pub const ITEMS: [Item; 30] = [
    ("pear", "pears", true),
    ("apple", "apples", true),
    ("plum", "plums", true),
    ("walnut", "walnuts", true),
    ("egg", "eggs", false),
    ("candle", "candles", false),
    ("button", "buttons", false),
    ("shell", "shells", false),
    ("feather", "feathers", false),
    ("marble", "marbles", false),
    ("ribbon", "ribbons", false),
    ("nail", "nails", false),
    ("cherry", "cherries", true),
    ("acorn", "acorns", false),
    ("bead", "beads", false),
    ("carrot", "carrots", true),
    ("turnip", "turnips", false),
    ("potato", "potatoes", false),
    ("biscuit", "biscuits", true),
    ("bun", "buns", true),
    ("pebble", "pebbles", false),
    ("stamp", "stamps", false),
    ("card", "cards", false),
    ("mushroom", "mushrooms", false),
    ("chestnut", "chestnuts", true),
    ("lemon", "lemons", false),
    ("fig", "figs", true),
    ("cork", "corks", false),
    ("peach", "peaches", true),
    ("needle", "needles", false),
];
pub const FIND_PLACES: [&str; 10] = [
    "on the path",
    "behind the shed",
    "at the bottom of a basket",
    "in an old coat",
    "by the well",
    "in the kitchen",
    "under a bench",
    "beside the road",
    "in a drawer",
    "near the fence",
];
pub const THIEVES: [&str; 6] = ["crow", "goat", "fox", "squirrel", "raven", "monkey"];

pub const OBJECT_KINDS: [&str; 12] = [
    "silver", "brass", "small", "red", "wooden", "old", "broken", "painted", "golden", "tiny",
    "heavy", "blue",
];
pub const OBJECTS: [&str; 16] = [
    "key", "ring", "letter", "map", "whistle", "compass", "medal", "locket", "bell", "book",
    "flute", "spoon", "box", "lantern", "mirror", "coin",
];
pub const HIDING_PLACES: [&str; 20] = [
    "under the stairs",
    "behind the stove",
    "in the blue jar",
    "inside the tall clock",
    "beneath a flat stone",
    "on the top shelf",
    "in the hollow oak",
    "under the third step",
    "behind the water barrel",
    "in the bread box",
    "in the left boot",
    "under the hay",
    "between two loose bricks",
    "behind the mirror",
    "in the empty beehive",
    "under the red carpet",
    "in the flour sack",
    "behind the piano",
    "in the garden wall",
    "under the upturned boat",
];
pub const SECRETS: [&str; 16] = [
    "silver", "thunder", "winter", "harbor", "lantern", "honey", "raven", "copper", "midnight",
    "clover", "ember", "willow", "cinnamon", "falcon", "marigold", "anchor",
];
/// (what is promised, what is done)
pub const PROMISES: [(&str, &str); 16] = [
    ("mend the gate", "mended the gate"),
    ("bring a jar of honey", "brought a jar of honey"),
    ("sing the old song", "sang the old song"),
    ("feed the geese", "fed the geese"),
    ("paint the boat", "painted the boat"),
    ("write a long letter", "wrote a long letter"),
    ("carry the firewood inside", "carried the firewood inside"),
    ("bake a plum cake", "baked a plum cake"),
    ("wash the windows", "washed the windows"),
    ("light the lamp in the tower", "lit the lamp in the tower"),
    ("fix the clock", "fixed the clock"),
    ("sweep the yard", "swept the yard"),
    ("tell the story of the bear", "told the story of the bear"),
    ("fetch fresh water", "fetched fresh water"),
    ("tune the fiddle", "tuned the fiddle"),
    ("sharpen the knives", "sharpened the knives"),
];
/// (on the way there, on the way back)
pub const WAYS: [(&str, &str); 14] = [
    ("past the mill", "past the mill"),
    ("over the stone bridge", "over the stone bridge"),
    ("through the orchard", "through the orchard"),
    ("along the river", "along the river"),
    ("around the pond", "around the pond"),
    ("past the chapel", "past the chapel"),
    ("across the square", "across the square"),
    ("through the birch wood", "through the birch wood"),
    ("up the hill", "down the hill"),
    ("past the lighthouse", "past the lighthouse"),
    ("down the long stairs", "up the long stairs"),
    ("across the wheat field", "across the wheat field"),
    ("under the arch", "under the arch"),
    ("through the north gate", "through the north gate"),
];
pub const GOALS: [&str; 10] = [
    "the market",
    "the school",
    "the forge",
    "the castle",
    "the station",
    "the library",
    "the bathhouse",
    "the theater",
    "the old quarry",
    "the post office",
];
pub const ANIMALS: [&str; 10] =
    ["goat", "dog", "cat", "goose", "donkey", "pony", "hen", "lamb", "rabbit", "parrot"];
pub const COLORS: [&str; 8] =
    ["gray", "white", "black", "brown", "spotted", "yellow", "striped", "speckled"];
pub const PET_NAMES: [&str; 16] = [
    "Pepper", "Button", "Thimble", "Biscuit", "Soot", "Clover", "Pickle", "Juniper", "Mustard",
    "Captain", "Turnip", "Velvet", "Nutmeg", "Pebble", "Moss", "Duchess",
];
/// (what the animal likes, what it is found doing)
pub const HABITS: [(&str, &str); 10] = [
    ("chase butterflies", "chasing butterflies"),
    ("sleep on the warm roof", "asleep on the warm roof"),
    ("steal socks", "stealing socks"),
    ("drink from the fountain", "drinking from the fountain"),
    ("hide in the laundry", "hiding in the laundry"),
    ("stare at the moon", "staring at the moon"),
    ("dig in the garden", "digging in the garden"),
    ("sit by the fire", "sitting by the fire"),
    ("follow the milk cart", "following the milk cart"),
    ("chew on old ropes", "chewing on old ropes"),
];
pub const GOODS: [(&str, &str); 10] = [
    ("loaf", "loaves"),
    ("lamp", "lamps"),
    ("brush", "brushes"),
    ("cup", "cups"),
    ("fish", "fish"),
    ("pie", "pies"),
    ("rope", "ropes"),
    ("blanket", "blankets"),
    ("hat", "hats"),
    ("pencil", "pencils"),
];
/// What people talk about.
pub const TOPICS: [&str; 14] = [
    "the sea",
    "old times",
    "the king",
    "bread and cheese",
    "ghosts",
    "the harvest",
    "ships",
    "music",
    "their mothers",
    "the bear",
    "money",
    "the moon",
    "distant cities",
    "the price of salt",
];
const NUMBERS: [&str; 20] = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 5] = ["twenty", "thirty", "forty", "fifty", "sixty"];

/// A number below 70 in words; 0 is "no", as before a noun.
pub fn number(n: u32) -> String {
    if n < 20 {
        return NUMBERS[n as usize].into();
    }
    let tens = TENS[(n as usize / 10 - 2).min(TENS.len() - 1)];
    if n.is_multiple_of(10) { tens.into() } else { format!("{tens}-{}", NUMBERS[n as usize % 10]) }
}

/// "one pear", "three pears", "no pears".
pub fn quantity(n: u32, item: Item) -> String {
    format!("{} {}", number(n), if n == 1 { item.0 } else { item.1 })
}

/// The noun phrase with its indefinite article.
pub fn a(phrase: &str) -> String {
    let article = if phrase.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {phrase}")
}

/// First letter in upper case.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

/// "a", "a and b", "a, b and c".
pub fn list(parts: &[&str]) -> String {
    match parts {
        [] => String::new(),
        [one] => (*one).into(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
