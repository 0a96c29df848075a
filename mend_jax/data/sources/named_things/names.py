"""The subjects of `named_things` by kind, the answers by kind, and which relation has which.

They are names alone: whether an answer is true of a subject does not matter, because the answers
that rows ask for are drawn at random.
"""

from __future__ import annotations

from typing import NamedTuple


class Relation(NamedTuple):
    """The kinds of the subjects and of the answers of a relation."""

    subjects: tuple[str, ...]
    answers: str


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(";"))


SUBJECTS: dict[str, tuple[str, ...]] = {
    "scientist": _names(
        "Isaac Newton; Charles Darwin; Galileo Galilei; Johannes Kepler; Michael Faraday; James "
        "Clerk Maxwell; Max Planck; Lise Meitner; Enrico Fermi; Richard Feynman; Ada Lovelace; "
        "Alan Turing; Emmy Noether; Carl Friedrich Gauss; Leonhard Euler; Srinivasa Ramanujan; "
        "Rosalind Franklin; Francis Crick; Gregor Mendel; Louis Pasteur; Robert Koch; Dmitri "
        "Mendeleev; Antoine Lavoisier; John Dalton; Ernest Rutherford; Werner Heisenberg; Erwin "
        "Schrödinger; Paul Dirac; Stephen Hawking; Carl Sagan; Jane Goodall; Rachel Carson; "
        "Sigmund Freud; Noam Chomsky; Adam Smith; Barbara McClintock; Grace Hopper; Edwin Hubble; "
        "Tycho Brahe; Alexander von Humboldt"
    ),
    "writer": _names(
        "Leo Tolstoy; Fyodor Dostoevsky; Charles Dickens; Virginia Woolf; Franz Kafka; Mark Twain; "
        "Ernest Hemingway; James Joyce; Gabriel García Márquez; Toni Morrison; Miguel de "
        "Cervantes; Johann Wolfgang von Goethe; Victor Hugo; Oscar Wilde; Emily Dickinson; Agatha "
        "Christie; Isabel Allende; Haruki Murakami; Salman Rushdie; Chinua Achebe; Astrid "
        "Lindgren; Hans Christian Andersen; Selma Lagerlöf; Thomas Mann; Hermann Hesse; Anton "
        "Chekhov; Jorge Luis Borges; Pablo Neruda; Rabindranath Tagore; Orhan Pamuk"
    ),
    "musician": _names(
        "Miles Davis; Louis Armstrong; Jimi Hendrix; John Coltrane; Ludwig van Beethoven; Johann "
        "Sebastian Bach; Niccolò Paganini; Clara Schumann; Django Reinhardt; Yo-Yo Ma; Ravi "
        "Shankar; Art Tatum; Charlie Parker; Eric Clapton; Ringo Starr; Keith Moon; Chet Baker; "
        "Nina Simone; Glenn Gould; Itzhak Perlman; Stan Getz; Dave Brubeck; Herbie Hancock; Mark "
        "Knopfler; Carlos Santana; Lang Lang; Fritz Kreisler; Pablo Casals; Sonny Rollins; B. B. "
        "King"
    ),
    "athlete": _names(
        "Serena Williams; Roger Federer; Michael Jordan; Usain Bolt; Diego Maradona; Pelé; "
        "Muhammad Ali; Tiger Woods; Wayne Gretzky; Michael Schumacher; Simone Biles; Michael "
        "Phelps; LeBron James; Steffi Graf; Zinedine Zidane; Babe Ruth; Tom Brady; Sachin "
        "Tendulkar; Magnus Carlsen; Lindsey Vonn; Eddy Merckx; Jesse Owens; Nadia Comăneci; Kobe "
        "Bryant; Andy Murray; Cristiano Ronaldo; Rafael Nadal; Jack Nicklaus; Billie Jean King; "
        "Ayrton Senna"
    ),
    "book": _names(
        "War and Peace; Moby-Dick; The Great Gatsby; Ulysses; Don Quixote; Madame Bovary; Jane "
        "Eyre; Wuthering Heights; Great Expectations; Middlemarch; The Trial; The Magic Mountain; "
        "One Hundred Years of Solitude; Crime and Punishment; Anna Karenina; The Odyssey; The "
        "Divine Comedy; Faust; Robinson Crusoe; Gulliver's Travels; Dracula; Treasure Island; The "
        "Time Machine; Brave New World; Animal Farm; The Hobbit; Dune; Beloved; Things Fall Apart; "
        "The Little Prince; Pippi Longstocking; Heidi; The Name of the Rose; Steppenwolf; The "
        "Stranger; Lolita; Catch-22; Emma; Persuasion; Hamlet"
    ),
    "film": _names(
        "Casablanca; Citizen Kane; Vertigo; Psycho; Jaws; Star Wars; Alien; Blade Runner; The "
        "Godfather; Taxi Driver; Pulp Fiction; Fargo; Titanic; Avatar; Metropolis; Nosferatu; "
        "Rashomon; Seven Samurai; Amélie; Life Is Beautiful; Spirited Away; Parasite; Gladiator; "
        "Inception; The Matrix; Forrest Gump; Rocky; The Shining; Some Like It Hot; Modern Times"
    ),
    "painting": _names(
        "The Starry Night; Guernica; The Scream; The Night Watch; Girl with a Pearl Earring; The "
        "Birth of Venus; The Last Supper; American Gothic; The Kiss; Water Lilies; Las Meninas; "
        "Nighthawks; The Hay Wain; The Persistence of Memory; Sunflowers; The Sistine Madonna; The "
        "Raft of the Medusa; Liberty Leading the People; The Arnolfini Portrait; The Garden of "
        "Earthly Delights; Whistler's Mother; The Gleaners; Olympia; The Fighting Temeraire; Café "
        "Terrace at Night"
    ),
    "song": _names(
        "Yesterday; Imagine; Bohemian Rhapsody; Like a Rolling Stone; Billie Jean; Hotel "
        "California; Smells Like Teen Spirit; Purple Rain; Respect; Hallelujah; Wonderwall; "
        "Dancing Queen; No Woman, No Cry; Space Oddity; Roxanne; Waterloo; My Way; Summertime; "
        "Thriller; Good Vibrations; Light My Fire; Heroes; Creep; Jolene; Respect Yourself"
    ),
    "company": _names(
        "Microsoft; Google; Amazon; Facebook; Tesla; Boeing; Airbus; Volkswagen; Toyota; Honda; "
        "Ford; General Motors; Samsung; Sony; Nokia; Siemens; Philips; Nestlé; Unilever; "
        "Coca-Cola; Pepsi; Starbucks; McDonald's; Adidas; Nike; IKEA; Lego; Spotify; Intel; "
        "Nvidia; IBM; Oracle; Adobe; Pfizer; Bayer; Shell; Maersk; Lufthansa; Heineken; Ferrari; "
        "Rolex; Zara; Walmart; Costco; Disney; Uber; Airbnb; PayPal; Dell; Lenovo"
    ),
    "product": _names(
        "the Walkman; the iPhone; the Game Boy; Windows 95; the PlayStation; the Kindle; "
        "Photoshop; the Model T; the Beetle; the Concorde; the Boeing 747; Post-it notes; Nutella; "
        "Red Bull; the Rubik's Cube; Barbie; Monopoly; Tetris; the Polaroid camera; the Vespa; the "
        "Mini; Aspirin; Nescafé; the ThinkPad; Android"
    ),
    "invention": _names(
        "the light bulb; the steam engine; the printing press; the radio; the airplane; the "
        "automobile; dynamite; the typewriter; the sewing machine; the zipper; the phonograph; the "
        "telegraph; the microscope; the telescope; the thermometer; the barometer; the bicycle; "
        "the elevator; the refrigerator; the parachute; the lightning rod; the transistor; the "
        "laser; the safety pin; the ballpoint pen; the vacuum cleaner; the helicopter; the "
        "television"
    ),
    "discovery": _names(
        "oxygen; radium; insulin; X-rays; the electron; the neutron; Uranus; Neptune; Pluto; DNA; "
        "gravity; radioactivity; the circulation of blood; the moons of Jupiter; hydrogen; the "
        "structure of benzene; vitamin C; the planet Ceres; argon; blood groups; the proton; "
        "superconductivity; photosynthesis; polonium; the rings of Saturn"
    ),
    "theory": _names(
        "the theory of evolution; quantum mechanics; calculus; game theory; set theory; the "
        "uncertainty principle; the periodic law; psychoanalysis; the theory of plate tectonics; "
        "the Big Bang theory; germ theory; information theory; the laws of planetary motion; "
        "general relativity; the theory of continental drift; non-Euclidean geometry; graph "
        "theory; the gas laws"
    ),
    "element": _names(
        "silver; iron; sodium; potassium; lead; tin; mercury; tungsten; copper; zinc; helium; "
        "neon; carbon; nitrogen; sulfur; chlorine; calcium; magnesium; aluminium; uranium; "
        "platinum; nickel; cobalt; iodine; phosphorus; silicon; titanium; lithium"
    ),
    "landmark": _names(
        "the Colosseum; Big Ben; the Statue of Liberty; the Brandenburg Gate; the Sydney Opera "
        "House; the Taj Mahal; the Sagrada Família; the Golden Gate Bridge; the Parthenon; the "
        "Kremlin; Notre-Dame; the Louvre; Buckingham Palace; the Leaning Tower; the Empire State "
        "Building; the Space Needle; the Burj Khalifa; the Acropolis; the Alhambra; Neuschwanstein "
        "Castle; the Atomium; Hagia Sophia; the CN Tower; the Petronas Towers; Tower Bridge; the "
        "Guggenheim Museum; the White House; the Pantheon; Edinburgh Castle; the Hermitage"
    ),
    "mountain": _names(
        "Mount Fuji; Mont Blanc; Kilimanjaro; the Matterhorn; Mount Kenya; Denali; Aconcagua; "
        "Mount Etna; Vesuvius; Mount Olympus; Ben Nevis; Mount Rainier; the Zugspitze; "
        "Popocatépetl; Cotopaxi; Mount Ararat; Elbrus; K2; Annapurna; Mount Cook; the Loire; the "
        "Thames; Lake Titicaca; Loch Ness; the Serengeti"
    ),
    "team": _names(
        "Manchester United; Real Madrid; Bayern Munich; Juventus; Ajax; Celtic; Boca Juniors; the "
        "Boston Celtics; the Chicago Bulls; the New York Yankees; the Dallas Cowboys; the Toronto "
        "Raptors; Galatasaray; Benfica; Arsenal; Borussia Dortmund; Olympiacos; River Plate; the "
        "Green Bay Packers; the Montreal Canadiens; Flamengo; Sevilla; Lazio; Everton; Rapid "
        "Vienna"
    ),
    "band": _names(
        "The Rolling Stones; Pink Floyd; Led Zeppelin; Queen; ABBA; Nirvana; Radiohead; U2; The "
        "Doors; Kraftwerk; Daft Punk; Metallica; Oasis; The Cure; The Clash; Genesis; Coldplay; "
        "Rammstein; Sigur Rós; The Who; The Kinks; Pearl Jam; R.E.M.; Blur; The Smiths"
    ),
    "dish": _names(
        "pizza; sushi; paella; goulash; couscous; kimchi; tacos; moussaka; borscht; croissants; "
        "hummus; curry; ramen; fondue; sauerkraut; risotto; gazpacho; falafel; pierogi; pho; "
        "haggis; lasagne; ceviche; baklava; tiramisu"
    ),
    "organization": _names(
        "Oxford University; Harvard University; the Red Cross; the United Nations; Greenpeace; the "
        "World Bank; the BBC; NASA; the European Union; Amnesty International; the Nobel "
        "Foundation; the Royal Society; Stanford University; the Sorbonne; FIFA; the Vatican "
        "Museums; the British Museum; the Salvation Army; Interpol; the New York Times"
    ),
    "animal": _names(
        "the giant panda; the koala; the polar bear; the blue whale; the anteater; the giraffe; "
        "the barn owl; the penguin; the sea otter; the hedgehog; the chameleon; the flamingo; the "
        "hummingbird; the crocodile; the hippopotamus; the badger; the kingfisher; the mole; the "
        "walrus; the vulture"
    ),
}
_CITIES = (
    "Vienna; Oslo; Madrid; Lisbon; Prague; Warsaw; Dublin; Athens; Rome; Berlin; Paris; London; "
    "Moscow; Istanbul; Cairo; Nairobi; Lagos; Mumbai; Delhi; Bangkok; Tokyo; Osaka; Seoul; "
    "Beijing; Sydney; Toronto; Chicago; Boston; Seattle; Dallas; Miami; Lima; Bogotá; Milan; "
    "Munich; Hamburg; Geneva; Lyon; Glasgow; Manchester"
)
_PEOPLE = (
    "Maria Lopez; John Carter; Anna Schmidt; Peter Hansen; Mary Shelley; Emily Brontë; Philip "
    "Pullman; Doris Lessing; Nikola Tesla; Marie Curie; Niels Bohr; Thomas Edison; Claude Monet; "
    "Paul Klee; Frida Kahlo; Steven Spielberg; Akira Kurosawa; David Bowie; Bob Dylan; Aretha "
    "Franklin; Steve Jobs; Bill Gates; Henry Ford; Walt Disney; Satya Nadella; Tim Cook; Frank "
    "Gehry; Zaha Hadid; Antoni Gaudí; Alex Ferguson; Pep Guardiola; Phil Jackson; Emma Johnson; "
    "Ravi Patel; Chen Wei; Yuki Tanaka; Olga Petrova; Ahmed Hassan; Carlos Ruiz; Sophie Martin"
)
ANSWERS: dict[str, tuple[str, ...]] = {
    "city": _names(_CITIES),
    "person": _names(_PEOPLE),
    "country": _names(
        "Norway; Spain; Portugal; Poland; Ireland; Greece; Italy; Germany; France; Russia; Turkey; "
        "Egypt; Kenya; Nigeria; India; Thailand; Japan; China; Australia; Canada; Peru; Chile; "
        "Mexico; Brazil; Austria; Sweden; Hungary; Nepal; Morocco; Cuba"
    ),
    "field": _names(
        "physics; chemistry; biology; mathematics; medicine; economics; linguistics; astronomy; "
        "geology; botany; philosophy; psychology; history; genetics; logic; archaeology; zoology; "
        "law"
    ),
    "instrument": _names(
        "piano; violin; guitar; drums; trumpet; saxophone; cello; flute; clarinet; harp; bass; "
        "organ; trombone; banjo; accordion; sitar"
    ),
    "sport": _names(
        "tennis; football; basketball; golf; boxing; swimming; cricket; rugby; baseball; skiing; "
        "cycling; hockey; chess; gymnastics; fencing; volleyball; rowing; wrestling"
    ),
    "organization": _names(
        "Google; Microsoft; NASA; Oxford University; Harvard University; the BBC; IBM; Boeing; the "
        "United Nations; Siemens; Toyota; the Red Cross; Stanford University; Nokia; Disney; Shell"
    ),
    "language": _names(
        "English; French; German; Spanish; Italian; Russian; Greek; Latin; Arabic; Hebrew; "
        "Turkish; Polish; Swedish; Dutch; Portuguese; Japanese; Chinese; Hindi; Korean; Finnish"
    ),
    "product": _names(
        "bicycles; cars; shoes; chocolate; furniture; watches; software; toys; medicines; coffee; "
        "engines; cameras; clothes; beer; computers; ships; phones; perfume"
    ),
    "symbol": _names("Go; Si; Ax; Zr; Kn; Ot; Pl; Ur; Mn; Qu; Lx; Te; Vo; Ny; Ba; Fo"),
    "year": _names(
        "1805; 1822; 1847; 1863; 1889; 1902; 1911; 1924; 1931; 1946; 1953; 1967; 1974; 1988; 1993; "
        "2004"
    ),
    "food": _names(
        "fish; grass; insects; fruit; leaves; seeds; mice; worms; nuts; berries; frogs; roots; "
        "honey; shrimp; mushrooms; eggs"
    ),
}
_PERSON = ("scientist", "writer", "musician", "athlete")
RELATIONS: dict[str, Relation] = {
    "person_born_in": Relation(_PERSON, "city"),
    "person_died_in": Relation(("scientist", "writer", "musician"), "city"),
    "person_citizen_of": Relation(_PERSON, "country"),
    "person_field": Relation(("scientist",), "field"),
    "person_instrument": Relation(("musician",), "instrument"),
    "person_sport": Relation(("athlete",), "sport"),
    "person_employer": Relation(("scientist",), "organization"),
    "person_mother_tongue": Relation(_PERSON, "language"),
    "person_spouse": Relation(_PERSON, "person"),
    "book_author": Relation(("book",), "person"),
    "book_language": Relation(("book",), "language"),
    "film_director": Relation(("film",), "person"),
    "painting_painter": Relation(("painting",), "person"),
    "work_shown_in": Relation(("painting",), "city"),
    "song_performer": Relation(("song",), "person"),
    "company_leader": Relation(("company",), "person"),
    "company_founder": Relation(("company",), "person"),
    "company_city": Relation(("company",), "city"),
    "company_product": Relation(("company",), "product"),
    "company_owner": Relation(("company",), "organization"),
    "product_maker": Relation(("product",), "organization"),
    "invention_inventor": Relation(("invention",), "person"),
    "discovery_discoverer": Relation(("discovery",), "person"),
    "theory_author": Relation(("theory",), "person"),
    "element_symbol": Relation(("element",), "symbol"),
    "landmark_city": Relation(("landmark",), "city"),
    "landmark_architect": Relation(("landmark",), "person"),
    "mountain_country": Relation(("mountain",), "country"),
    "team_city": Relation(("team",), "city"),
    "team_coach": Relation(("team",), "person"),
    "band_city": Relation(("band",), "city"),
    "dish_origin": Relation(("dish",), "country"),
    "organization_founded_in": Relation(("organization",), "year"),
    "animal_food": Relation(("animal",), "food"),
}
