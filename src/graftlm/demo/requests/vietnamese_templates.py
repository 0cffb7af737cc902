"""Sentence templates of Vietnamese requests: for training, and kept for the held-out rows."""

from __future__ import annotations

from graftlm.demo.requests.vocabulary import Pool

__all__ = ["INTRODUCTIONS", "SIGNATURES", "TEMPLATES"]

INTRODUCTIONS = Pool(
    train=(
        "Mình là {name}.",
        "{name} đây.",
        "Em là {name} ạ.",
        "Mình tên {name}.",
        "Anh {name} đây em.",
        "Em tên là {name}.",
        "Cô {name} đây.",
        "Chú {name} nè.",
        "Em {name} đây ạ.",
        "{name} nhắn lại nha.",
    ),
    heldout=("Tôi là {name}.", "Chị {name} đây.", "Mình tên là {name}."),
)

SIGNATURES = Pool(
    train=(
        "Mình tên {name}.",
        "Tên {name} nhé.",
        "{name}.",
        "Tên mình là {name}.",
        "Em tên {name}.",
        "Mình là {name}.",
        "Khách: {name}.",
        "Tên khách là {name}.",
        "Ghi tên {name} nha.",
        "Người nhận: {name}.",
        "Để tên {name} giúp mình.",
    ),
    heldout=("Tôi tên {name}.", "Em là {name}.", "Tên: {name}.", "Ghi tên mình là {name} nhé."),
)

ORDERS = Pool(
    train=(
        "Cho mình đặt {items} giao về {city} nhé.",
        "Mình muốn mua {items}, ship về {city} giúp mình.",
        "Shop còn hàng không? Mình lấy {items}, gửi về {city}.",
        "Đặt giúp mình {items}. Giao {city}.",
        "Lấy {items} nhé em, gửi {city}.",
        "Đặt {items}, giao tận nhà ở {city} nha.",
        "Mình cần {items} gửi gấp về {city}.",
        "Shop có ship {city} không? Mình muốn lấy {items}.",
        "Nhà mình ở {city}, cho mình {items}.",
        "{items} giao {city}.",
        "Em ở {city}, em muốn đặt {items} ạ.",
        "Lần này cho mình {items}, vẫn giao về {city} như cũ.",
        "Em muốn mua {items} tặng mẹ, ship {city} được không ạ?",
        "Mình thấy trên page đẹp quá, lấy {items} về {city} nhé.",
        "Giao {items} đến {city} giúp mình.",
        "Cho mình {items} nhé.",
        "Lấy {items}, mình tự qua cửa hàng lấy.",
        "Chốt đơn {items} cho {name}, địa chỉ ở {city}.",
        "Gửi {name} {items} về {city} nhé.",
        "Ship {items} cho {name} ở {city} nha shop.",
        "{name} muốn mua {items}, giao {city}.",
        "Để dành cho {name} {items}, lát mình ghé lấy.",
        "Em lấy {items}, tối em ghé lấy.",
        "Bên em ở {city}, muốn mua {items}.",
        "Nhận giao {city} không ad? Mình đặt {items}.",
        "Anh cần gấp {items}, ship {city}.",
    ),
    heldout=(
        "Mình muốn đặt {items}, gửi về {city} giùm mình.",
        "Bên mình ở {city}, cần mua {items}.",
        "Gửi giúp mình {items} đến {city} nhé.",
        "Có giao tới {city} không shop? Cho mình {items}.",
        "Tôi cần {items}, địa chỉ ở {city}.",
        "Mình lấy {items}, chiều mình qua lấy.",
        "Giao cho {name} {items} về {city} nha.",
        "Đặt cho {name} {items}, ship tới {city}.",
    ),
)

BOOKINGS = Pool(
    train=(
        "Cho mình đặt bàn {people} {when} nhé.",
        "Mình muốn đặt bàn {when} cho {people}.",
        "Đặt bàn {people}, {when}.",
        "Quán còn bàn {when} không ạ? Bên mình đi {people}.",
        "Giữ giúp mình một bàn {when}, {people}.",
        "{when} cho mình bàn {people} nhé.",
        "{when} nhóm mình {people} qua ăn nha.",
        "Chị muốn đặt chỗ {when} cho {people}.",
        "Nhà hàng cho em đặt bàn {people} {when} ạ.",
        "Mình muốn tổ chức sinh nhật {when}, khoảng {people}.",
        "Xin bàn gần cửa sổ {when}, {people}.",
        "Bên mình có {people}, {when} tới được không?",
        "{when} anh dẫn {people} tới ăn.",
        "Đi {people}, hẹn {when}.",
        "Cho mình bàn {people} {when}.",
        "{when} còn chỗ cho {people} không shop?",
        "Mình cần đặt bàn {when}, đi {people} nha.",
        "Đặt chỗ cho {name}: {people}, {when}.",
        "Giữ bàn cho {name} {when} nhé, {people}.",
        "{name} đặt bàn {when}, {people}.",
        "Nhà mình {people} tính qua ăn {when}.",
        "Để dành một bàn {when}, tụi em {people}.",
        "{when} em ghé, cả thảy {people}.",
    ),
    heldout=(
        "Tụi mình đi {people}, {when} còn bàn không?",
        "Mình đặt một bàn cho {people}, {when}.",
        "Gia đình mình {people} muốn ghé quán {when}.",
        "Giữ chỗ giúp mình {when}, nhóm {people} nhé.",
        "Tôi cần bàn cho {people} {when}.",
        "{when} mình tới ăn, tổng cộng {people}.",
        "Cho {name} đặt bàn {people} {when} nha.",
        "Đặt bàn {when} cho {name}, đi {people}.",
    ),
)

COMPLAINTS = Pool(
    train=(
        "Mình mua {item} bên shop mà {problem}. {wish}.",
        "{item} mình đặt {problem}. {wish}.",
        "Shop ơi {item} {problem}. {wish}.",
        "Sao {item} {problem} vậy shop? {wish}.",
        "{item} mới mua {problem}. {wish}.",
        "Em đặt {item} mà {problem}. {wish} ạ.",
        "Chán quá, {item} {problem}. {wish}.",
        "Bực mình ghê, {item} {problem}. {wish}.",
        "Buồn ghê, {item} vừa lấy {problem}. {wish}.",
        "Tệ thật! {item} {problem}. {wish}.",
        "Không ổn rồi, {item} của em {problem}. {wish}.",
        "{item} shop gửi cho em {problem}. {wish}.",
        "{wish} nha shop! {item} em lấy {problem}.",
        "{item} của anh {problem}. {wish}.",
        "Hàng gì kỳ vậy, {item} {problem}! {wish}.",
        "Chị báo em là {item} {problem}. {wish}.",
        "Mình nhắn lần hai rồi, {item} {problem}. {wish}.",
        "Mình không hài lòng, {item} {problem}. {wish}.",
        "Em mới nhận {item} nhưng {problem}. {wish}.",
        "Shop làm ăn kiểu gì mà {item} {problem}? {wish}.",
        "{wish}, {item} {problem}.",
        "{item} của mình {problem}.",
        "{item} mình mua {problem}.",
        "Đơn của {name}: {item} {problem}. {wish}.",
        "Cho {name} hỏi, {item} {problem} thì sao? {wish}.",
        "{name} mua {item} mà {problem}. {wish}.",
    ),
    heldout=(
        "Mình đặt {item} nhưng {problem}. {wish}.",
        "{item} bên shop giao cho mình {problem}. {wish}.",
        "Thất vọng quá, {item} {problem}. {wish}.",
        "Tôi mua {item}, {problem} rồi. {wish}.",
        "Bạn ơi, {item} của mình {problem}. {wish}.",
        "{wish}! {item} mình mua {problem}.",
        "Bạn ơi, {item} {problem}.",
        "Báo lỗi đơn của {name}: {item} {problem}. {wish}.",
    ),
)

TEMPLATES = {"order": ORDERS, "booking": BOOKINGS, "complaint": COMPLAINTS}
