"""The subjects of `named_things` by kind, and the answers by kind.

They are names alone: whether an answer is true of a subject does not matter, because the answers
that rows ask for are drawn at random.
"""

from __future__ import annotations


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
        "Popocatépetl; Cotopaxi; Mount Ararat; Elbrus; K2; Annapurna; Mount Cook; Table "
        "Mountain; Mount Sinai; the Eiger; Nanga Parbat; Ben Lomond"
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
    "politician": _names(
        "Abraham Lincoln; Winston Churchill; Nelson Mandela; Angela Merkel; Indira Gandhi; Charles "
        "de Gaulle; Margaret Thatcher; Willy Brandt; Golda Meir; John F. Kennedy; Olof Palme; "
        "Jawaharlal Nehru; Theodore Roosevelt; Barack Obama; Justin Trudeau; Konrad Adenauer; "
        "Lech Wałęsa; Jacinda Ardern; Kofi Annan; Benjamin Disraeli"
    ),
    "monarch": _names(
        "Queen Victoria; Catherine the Great; Louis XIV; Henry VIII; Frederick the Great; Peter "
        "the Great; Maria Theresa; Philip II; Elizabeth I; Gustavus Adolphus; Charlemagne; "
        "Suleiman the Magnificent; Akbar; Franz Joseph; Queen Margrethe; Haile Selassie"
    ),
    "character": _names(
        "Sherlock Holmes; Harry Potter; James Bond; Batman; Miss Marple; Tintin; Gulliver; "
        "Sinbad; Captain Ahab; Robin Hood; Hercule Poirot; Superman; Peter Pan; Winnie-the- "
        "Pooh; Zorro; Indiana Jones; Mary Poppins; Tarzan; Lara Croft; Spider-Man"
    ),
    "series": _names(
        "Friends; The Simpsons; Breaking Bad; Doctor Who; The Sopranos; Seinfeld; The Wire; Game "
        "of Thrones; Fawlty Towers; Twin Peaks; Mad Men; Star Trek; The Office; House of Cards; "
        "Downton Abbey; Stranger Things; Columbo; Borgen"
    ),
    "game": _names(
        "Asteroids; Super Mario Bros.; Minecraft; The Sims; Pac-Man; Civilization; Doom; "
        "SimCity; Half-Life; The Legend of Zelda; Pong; Portal; Cluedo; Scrabble; Myst; Catan; "
        "Risk; Angry Birds"
    ),
    "software": _names(
        "GIMP; Linux; Firefox; Emacs; PostgreSQL; Blender; WordPress; Excel; Git; Skype; TeX; "
        "Winamp; Audacity; Redis; Kubernetes; Inkscape; Word; Chrome"
    ),
    "opera": _names(
        "Carmen; The Magic Flute; La Bohème; Aida; Tosca; Rigoletto; The Flying Dutchman; "
        "Fidelio; Don Giovanni; The Barber of Seville; Swan Lake; The Nutcracker; Boléro; The "
        "Planets; the Moonlight Sonata; The Four Seasons"
    ),
    "airline": _names(
        "Austrian Airlines; Qantas; Emirates; Finnair; KLM; Air France; Ryanair; Delta Air "
        "Lines; Iberia; Aeroflot; Singapore Airlines; Icelandair; LATAM; Swissair; Pan Am; "
        "EasyJet"
    ),
    "newspaper": _names(
        "Le Monde; The Guardian; El País; the Washington Post; Der Spiegel; the Wall Street "
        "Journal; Corriere della Sera; The Economist; Asahi Shimbun; Pravda; Dagens Nyheter; The "
        "Hindu; Haaretz; Die Zeit; National Geographic; the Daily Mail"
    ),
    "planet": _names(
        "Mars; Jupiter; Saturn; Triton; Io; Callisto; Venus; Phobos; Ceres; Titan; Europa; "
        "Ganymede; Halley's Comet; Eris"
    ),
    "flower": _names(
        "the tulip; the rose; the sunflower; the violet; the daffodil; the orchid; the poppy; the "
        "lily; the daisy; the lavender; the buttercup; the bluebell; the dandelion; the carnation"
    ),
    "disease": _names(
        "malaria; tuberculosis; diabetes; measles; cholera; scurvy; polio; leprosy; influenza; "
        "hepatitis; asthma; rabies; tetanus; gout; migraine; smallpox; anemia; typhus"
    ),
    "river": _names(
        "the Danube; the Congo; the Volga; the Mississippi; the Ganges; the Mekong; the Elbe; "
        "the Po; the Tagus; the Vistula; the Zambezi; the Orinoco; the Yukon; the Murray; the "
        "Indus; the Loire; the Thames"
    ),
    "lake": _names(
        "Lake Victoria; Lake Baikal; Lake Como; Lake Superior; Lake Titicaca; Loch Ness; Lake "
        "Balaton; Lake Ladoga; Lake Malawi; Lake Van; Lake Ontario; Lake Tahoe"
    ),
    "island": _names(
        "Sicily; Crete; Tasmania; Hokkaido; Majorca; Corsica; Zanzibar; Bali; Lanzarote; Gotland; "
        "Bornholm; Rügen; Capri; Sardinia; Rhodes; Skye"
    ),
    "town": _names(
        "Bruges; Salzburg; Ghent; Heidelberg; Bath; Siena; Toledo; Granada; Nantes; Leipzig; "
        "Bergen; Kraków; Utrecht; Bilbao; Kyoto; Adelaide; Calgary; Denver; Portland; Nashville; "
        "Cork; Graz; Verona; Malmö; Dresden; Porto"
    ),
    "college": _names(
        "Princeton University; Yale University; MIT; the University of Tokyo; ETH Zurich; Cornell "
        "University; Uppsala University; the University of Bologna; Imperial College; McGill "
        "University; Peking University; Trinity College; Columbia University; Caltech; the "
        "University of Coimbra; Duke University"
    ),
    "bridge": _names(
        "the Sydney Harbour Bridge; the Humber Bridge; the Charles Bridge; the Rialto Bridge; "
        "the Brooklyn Bridge; the Millau Viaduct; the Chain Bridge; the Pont Neuf; the Forth "
        "Bridge; the Stone Bridge; the Bosphorus Bridge; the Tappan Zee Bridge"
    ),
    "airport": _names(
        "Heathrow; Schiphol; O'Hare; Charles de Gaulle Airport; Narita; Changi; Gatwick; "
        "LaGuardia; Fiumicino; Barajas; Arlanda; Tegel; Malpensa; Ben Gurion Airport"
    ),
    "holiday": _names(
        "Halloween; Thanksgiving; Diwali; Easter; Bastille Day; Oktoberfest; Carnival; Ramadan; "
        "the Day of the Dead; Hanukkah; Valentine's Day; Nowruz; Midsummer; Boxing Day; Mother's "
        "Day; the Dragon Boat Festival"
    ),
    "discipline": _names(
        "badminton; judo; polo; handball; curling; squash; water polo; lacrosse; karate; ice "
        "hockey; table tennis; snooker; darts; archery; croquet; beach volleyball"
    ),
    "event": _names(
        "the Battle of Hastings; the World Cup final; the Congress of Vienna; the Battle of "
        "Marathon; the first modern Olympics; the Woodstock Festival; the World's Fair; the Tour "
        "de France; the Wimbledon final; the Battle of Waterloo; the Super Bowl; the Eurovision "
        "Song Contest; the siege of Troy; the Cannes Film Festival; the Boston Tea Party; the "
        "Battle of Gettysburg"
    ),
    "pet": _names(
        "Rex the dog; Whiskers the cat; Polly the parrot; Bella the dog; Felix the cat; Goldie "
        "the goldfish; Max the dog; Luna the cat; Thumper the rabbit; Charlie the horse; Daisy "
        "the cow; Oscar the hamster"
    ),
    "post": _names(
        "the mayor of our town; the head of our school; the manager of the hotel; the editor of "
        "our newsletter; the coach of the swimming team; the captain of the ferry; the director "
        "of the museum; the chief of the fire brigade; our family doctor; the president of the "
        "chess club; the owner of the bakery; the leader of the choir; the head of human "
        "resources; our team lead; the maintainer of the library; the head of security"
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
    "occupation": _names(
        "carpenter; lawyer; teacher; painter; baker; pilot; farmer; journalist; nurse; tailor; "
        "banker; gardener; photographer; dentist; plumber; librarian; sailor; waiter"
    ),
    "award": _names(
        "Nobel Prize; Pulitzer Prize; Fields Medal; Grammy Award; Booker Prize; Turing Award; "
        "Golden Globe; Copley Medal; Legion of Honour; Palme d'Or; Order of Merit; Tony Award"
    ),
    "university": _names(
        "Oxford University; Harvard University; Stanford University; the University of Vienna; "
        "the University of Warsaw; Heidelberg University; the Sorbonne; the University of Lagos; "
        "the University of Delhi; Seoul National University; Leiden University; Moscow University"
    ),
    "religion": _names(
        "Buddhism; Islam; Christianity; Judaism; Hinduism; Taoism; Sikhism; Shinto; Catholicism"
    ),
    "hobby": _names(
        "fishing; gardening; chess; painting; sailing; cooking; hiking; dancing; photography; "
        "knitting; cycling; birdwatching; pottery; climbing; reading; skating"
    ),
    "party": _names(
        "Green Party; Labour Party; Conservative Party; Liberal Party; Socialist Party; Democratic "
        "Party; Republican Party; Centre Party; Farmers' Party; People's Party; Pirate Party"
    ),
    "office": _names(
        "mayor of Chicago; governor of Texas; minister of finance; president of Chile; ambassador "
        "to Japan; chancellor of Austria; minister of health; governor of Alaska; mayor of Oslo; "
        "foreign minister; prime minister of Peru; secretary of defence"
    ),
    "broadcaster": _names(
        "the BBC; NBC; CBS; HBO; Netflix; Fox; ABC; Channel 4; Disney; MTV; CNN; Sky"
    ),
    "genre": _names(
        "jazz; horror; comedy; science fiction; romance; reggae; folk; fantasy; opera; satire; "
        "blues; crime; tragedy; techno; punk; soul"
    ),
    "programming_language": _names(
        "Python; Java; Rust; Fortran; C; Lisp; Haskell; Go; Pascal; Ruby; Perl; Swift; Ada; Cobol"
    ),
    "number": _names("two; three; four; five; six; seven; eight; nine; ten; eleven; twelve; forty"),
    "color": _names(
        "red; blue; green; yellow; purple; orange; black; white; grey; pink; brown; silver; gold"
    ),
    "habitat": _names(
        "deserts; rainforests; swamps; caves; mountains; rivers; grasslands; cities; oceans; "
        "forests; the tundra; gardens; the savanna; lakes"
    ),
    "animal_class": _names(
        "birds; reptiles; mammals; fish; amphibians; insects; spiders; rodents; cats; bears; "
        "whales; deer; bats; molluscs"
    ),
    "cause": _names(
        "bacteria; a virus; stress; lead; smoke; sugar; a fungus; cold air; dust; worms; sunlight; "
        "mosquitoes; a lack of iron; pollen; noise"
    ),
    "medicine": _names(
        "penicillin; aspirin; insulin; quinine; morphine; garlic; vitamin C; iron; honey; "
        "cortisone; ibuprofen; ginger; zinc; warm baths"
    ),
    "organ": _names(
        "liver; heart; lungs; kidneys; skin; eyes; brain; stomach; spleen; bones; ears; nerves"
    ),
    "sea": _names(
        "Black Sea; North Sea; Baltic Sea; Atlantic Ocean; Pacific Ocean; Indian Ocean; Caspian "
        "Sea; Red Sea; Adriatic Sea; Arctic Ocean; Mediterranean; Gulf of Mexico"
    ),
    "river_name": _names(
        "Rhine; Thames; Seine; Nile; Rhône; Oder; Tiber; Hudson; Ebro; Main; Neva; Dnieper; "
        "Moldau; Colorado; Tigris; Yangtze"
    ),
    "stadium": _names(
        "Wembley; the Maracanã; Camp Nou; Old Trafford; San Siro; the Rose Bowl; Fenway Park; "
        "Anfield; Lambeau Field; the Olympic Stadium; Ullevi; Croke Park"
    ),
    "ingredient": _names(
        "potatoes; rice; beans; cheese; fish; cabbage; lentils; eggs; mushrooms; pork; spinach; "
        "maize; apples; almonds; chicken; carrots; pumpkin; tofu"
    ),
    "month": _names(
        "January; February; March; April; May; June; July; August; September; October; November; "
        "December"
    ),
}
