"""Sentence templates of English requests: for training, and kept for the held-out rows."""

from __future__ import annotations

from graftlm.demo.requests.vocabulary import Pool

__all__ = ["INTRODUCTIONS", "SIGNATURES", "TEMPLATES"]

INTRODUCTIONS = Pool(
    train=(
        "This is {name}.",
        "{name} here.",
        "I'm {name}.",
        "My name is {name}.",
        "It's {name} again.",
        "{name} from the office here.",
        "You are writing with {name}.",
        "{name} again.",
        "Here is {name}.",
    ),
    heldout=("{name} speaking.", "You are talking to {name}.", "My name's {name}."),
)

SIGNATURES = Pool(
    train=(
        "Name is {name}.",
        "Thanks, {name}.",
        "It's for {name}.",
        "Name: {name}.",
        "My name is {name}.",
        "{name}.",
        "Please put it under {name}.",
        "Cheers, {name}.",
        "I'm {name} by the way.",
        "Yours, {name}.",
        "Sent by {name}.",
    ),
    heldout=("Regards, {name}.", "The name's {name}.", "Best wishes, {name}.", "Signed: {name}."),
)

ORDERS = Pool(
    train=(
        "I'd like to order {items} please, deliver to {city}.",
        "Can I get {items} sent to {city}?",
        "Please send {items} to my place in {city}.",
        "{items} to {city} please.",
        "Do you ship to {city}? I want {items}.",
        "Order: {items}, delivery in {city}.",
        "I'm from {city} and I need {items}.",
        "We are in {city}. Could you bring {items}?",
        "Can you post {items} to {city}?",
        "Need {items} delivered in {city}.",
        "Just saw your page, I'd love {items}. I live in {city}.",
        "I want to buy {items}, shipping to {city}.",
        "Are these in stock? I want {items}. Address is in {city}.",
        "Same address in {city}, this time {items}.",
        "Could I order {items}? I'll pick up myself.",
        "I need {items}, please.",
        "Please put me down for {items}.",
        "Order for {name}: {items}, city {city}.",
        "Please send {items} to {name} in {city}.",
        "{name} from {city} wants {items}.",
        "Ship {items} to {name}, {city}.",
        "Keep {items} for {name}, I'll come by the shop.",
    ),
    heldout=(
        "I would like {items} shipped to {city}.",
        "Looking to buy {items} for my home in {city}.",
        "Could I have {items}? The address is in {city}.",
        "Delivery to {city}: {items}, thank you.",
        "My sister in {city} needs {items}.",
        "Do you have {items}? I can collect them.",
        "Please deliver {items} to {name} in {city}.",
        "{items} for {name}, going to {city}.",
    ),
)

BOOKINGS = Pool(
    train=(
        "Can I book a table for {people} {when}?",
        "Table for {people} {when} please.",
        "I'd like to reserve a table {when} for {people}.",
        "We are {people} and would like to come {when}.",
        "Do you have space for {people} {when}?",
        "Booking for {people} people, {when}.",
        "A table {when} please, {people} of us.",
        "Is there a free table {when}? We'd be {people}.",
        "We want to eat at your place {when}, party of {people}.",
        "Could you fit in {people} {when}?",
        "Reservation {when}, {people} guests.",
        "I want to book for {people} people {when}.",
        "Could you save us a table by the window {when}? {people} people.",
        "It's my birthday! Table for {people} {when}.",
        "{when}, {people} people, would that work?",
        "Can we come {when}? There are {people} of us.",
        "Any chance of a table {when} for {people}?",
        "Hold a table for {people} {when} for {name}, please.",
        "Put {name} down for {people} {when} please.",
        "Table {when}, {people} people, booked by {name}.",
        "{name} wants a table for {people} {when}.",
    ),
    heldout=(
        "We'd like to come {when}, {people} in total.",
        "Please keep a table for {people} {when}.",
        "Could {people} of us eat at your place {when}?",
        "Is a table for {people} possible {when}?",
        "Dinner or lunch {when}, we'll be {people}.",
        "Please reserve {people} seats {when}.",
        "Book a table {when} for {name}, {people} guests.",
        "{name} would like to reserve for {people} {when}.",
    ),
)

COMPLAINTS = Pool(
    train=(
        "The {item} I bought {problem}. {wish}.",
        "My {item} {problem}. {wish}.",
        "My new {item} {problem}. {wish}.",
        "I'm not happy, the {item} {problem}! {wish}.",
        "I ordered a {item} and it {problem}. {wish}.",
        "I bought a {item} from you but it {problem}. {wish}.",
        "Bad service! The {item} {problem}. {wish}.",
        "Sorry to bother you, but my {item} {problem}. {wish}.",
        "About my {item}: it {problem}. {wish}.",
        "Second time I write. The {item} {problem}. {wish}.",
        "What is going on? My {item} {problem}! {wish}.",
        "I paid for a {item} that {problem}. {wish}.",
        "I have a problem, my {item} {problem}. {wish}.",
        "So disappointed, the {item} you sent {problem}. {wish}.",
        "{wish}. The {item} {problem}.",
        "The {item} {problem}.",
        "I need help, the {item} {problem}.",
        "Order for {name}: the {item} {problem}. {wish}.",
        "The {item} for {name} {problem}. {wish}.",
        "Please help {name}, the {item} {problem}. {wish}.",
    ),
    heldout=(
        "Your {item} {problem}. {wish}.",
        "I'm writing because the {item} {problem}. {wish}.",
        "Really annoyed, this {item} {problem}! {wish}.",
        "I got a {item} from your shop and it {problem}. {wish}.",
        "Just so you know, my {item} {problem}. {wish}.",
        "Hello, the {item} I ordered {problem}.",
        "{wish}, because my {item} {problem}.",
        "A complaint from {name}: the {item} {problem}. {wish}.",
    ),
)

TEMPLATES = {"order": ORDERS, "booking": BOOKINGS, "complaint": COMPLAINTS}
