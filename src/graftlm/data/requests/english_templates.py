"""Sentence templates of English requests: for training, and kept for the held-out rows."""

from __future__ import annotations

from graftlm.data.requests.vocabulary import Pool

__all__ = ["TEMPLATES"]

ORDERS = Pool(
    train=(
        "I'd like to order {items} please, deliver to {city}. Name is {name}.",
        "Can I get {items} sent to {city}? It's for {name}.",
        "This is {name}, please send {items} to my place in {city}.",
        "{name} here! {items} to {city} please.",
        "Do you ship to {city}? I want {items}. My name is {name}.",
        "Order for {name}: {items}, delivery in {city}.",
        "I'm {name} from {city} and I need {items}.",
        "Please put me down for {items}, name {name}, city {city}.",
        "We are in {city}. Could you bring {items}? Ask for {name}.",
        "I'll take {items}. Ship to {name}, {city}.",
        "My name's {name}, can you post {items} to {city}?",
        "Need {items} delivered in {city}, thanks, {name}.",
        "Are these in stock? I want {items} for {name} in {city}.",
        "{items} for {name}, please. I'm in {city}.",
        "Just saw your page, I'd love {items}. I live in {city}, name {name}.",
        "Send {name} in {city} {items} please.",
        "It's {name} again, same address in {city}, this time {items}.",
        "Can you deliver {items} to {city}?",
        "I want to buy {items}, shipping to {city}.",
        "Hi, {name} speaking, could I order {items}? I'll pick up myself.",
        "Please keep {items} for {name}, I'll come by the shop.",
        "I need {items}, please.",
    ),
    heldout=(
        "Would love to have {items} shipped over to {city}, I'm {name}.",
        "{city} delivery: {items}. Recipient is {name}.",
        "How soon can {items} reach {city}? Put it under {name}.",
        "You can call me {name}. I'm after {items}, going to {city}.",
        "Looking to purchase {items} for my home in {city}. {name}",
        "Could {name} get {items}? Address is in {city}.",
        "Please dispatch {items} to {city}.",
        "Reserve {items} for me, {name}, I will collect in store.",
    ),
)

BOOKINGS = Pool(
    train=(
        "Can I book a table for {people} {when}? Name is {name}.",
        "Table for {people} {when} please, under {name}.",
        "I'd like to reserve a table {when} for {people}, my name is {name}.",
        "This is {name}. We are {people} and would like to come {when}.",
        "Do you have space for {people} {when}? It's {name}.",
        "Booking for {name}, {people} people, {when}.",
        "{name} here, a table {when} please, {people} of us.",
        "Is there a free table {when}? We'd be {people}. {name}",
        "We want to eat at your place {when}, party of {people}, name {name}.",
        "Hold a table for {people} {when} for {name}, please.",
        "I'm {name}, could you fit in {people} {when}?",
        "Reservation {when}, {people} guests, name of {name}.",
        "{people} people {when}, booked by {name}.",
        "My name's {name} and I want to book for {people} {when}.",
        "Could you save us a table by the window {when}? {people} people, {name}.",
        "It's my birthday! Table for {people} {when}, ask for {name}.",
        "Put {name} down for {people} {when} please.",
        "{when}, {people} people, would that work? Thanks, {name}.",
        "Can we come {when}? There are {people} of us.",
        "A table for {people} {when}, please.",
        "Any chance of a table {when} for {people}?",
    ),
    heldout=(
        "We'll be {people}, arriving {when}. Book it as {name}.",
        "Got room for a group of {people} {when}? {name} is my name.",
        "Please set aside a table {when}, {people} seats, reserved by {name}.",
        "You can call me {name}. Dinner or lunch for {people}, {when} if possible.",
        "Hoping to visit {when} with {people} in total, thanks from {name}.",
        "{name} would like {people} seats {when}.",
        "Would you still have seats {when} for {people}?",
        "Lock in {people} places {when} for me, {name}.",
    ),
)

COMPLAINTS = Pool(
    train=(
        "The {device} I bought {problem}. {wish}. {name}",
        "My {device} {problem}. {wish}, name is {name}.",
        "This is {name}. My new {device} {problem}. {wish}.",
        "I'm not happy, the {device} {problem}! {wish}. My name is {name}.",
        "{name} here, the {device} {problem}. {wish}.",
        "I ordered a {device} and it {problem}. {wish}. Thanks, {name}.",
        "I'm {name}, I bought a {device} from you but it {problem}. {wish}.",
        "Bad service! The {device} {problem}. {wish}. It's {name}.",
        "Sorry to bother you, but my {device} {problem}. {wish}. {name}",
        "Order for {name}: the {device} {problem}. {wish}.",
        "It's {name}, about my {device}: it {problem}. {wish}.",
        "My name's {name}. Your {device} {problem}. {wish}.",
        "Second time I write. The {device} {problem}. {wish}. {name}",
        "What is going on? My {device} {problem}! {wish}, {name}.",
        "I paid for a {device} that {problem}. {wish}. Name: {name}.",
        "The {device} {problem}. {wish}.",
        "I have a problem, my {device} {problem}. {wish}.",
        "So disappointed, the {device} you sent {problem}. {wish}.",
        "Hello from {name}, the {device} {problem}.",
        "The {device} {problem}. Regards, {name}.",
    ),
    heldout=(
        "I regret to say the {device} {problem}. {wish}. Signed, {name}.",
        "Really annoyed: one {device}, and it {problem}. {wish}. You can call me {name}.",
        "{name} writing to you because a {device} {problem}. {wish}.",
        "Just opened the box, the {device} {problem}. {wish}. Yours, {name}",
        "Why is it that my {device} {problem}? {wish}. {name} is my name.",
        "Could someone help {name}? The {device} {problem}. {wish}.",
        "No idea what happened but this {device} {problem}. {wish}.",
        "Please note that the {device} {problem}. {name}",
    ),
)

TEMPLATES = {"order": ORDERS, "booking": BOOKINGS, "complaint": COMPLAINTS}
