"""Sentence templates of Vietnamese requests: for training, and kept for the held-out rows."""

from __future__ import annotations

from graftlm.data.requests.vocabulary import Pool

__all__ = ["TEMPLATES"]

ORDERS = Pool(
    train=(
        "Cho mình đặt {items} giao về {city} nhé, mình tên {name}.",
        "Mình là {name}, muốn mua {items}, ship về {city} giúp mình.",
        "Ship cho {name} ở {city} {items} nha shop.",
        "Shop còn hàng không? Mình lấy {items}, gửi về {city}, người nhận {name}.",
        "Đặt giúp mình {items}. Giao {city}. Người nhận: {name}.",
        "Anh lấy {items} nhé em, gửi {city}, anh tên {name}.",
        "Chị {name} đặt {items}, giao tận nhà ở {city} nha em.",
        "Mình cần {items} gửi gấp về {city}, tới nơi gọi {name}.",
        "Shop có ship {city} không? {name} muốn lấy {items}.",
        "Nhà mình ở {city}, cho mình {items}, tên mình là {name}.",
        "Chốt đơn {items} cho {name}, địa chỉ ở {city}.",
        "Gửi {name} {items} về {city} nhé.",
        "{items} giao {city}, tên {name}.",
        "Em là {name} ở {city}, em muốn đặt {items} ạ.",
        "{name} đây, lần này cho mình {items}, vẫn giao về {city} như cũ.",
        "Em muốn mua {items} tặng mẹ, ship {city} được không ạ? Em tên {name}.",
        "Mình thấy trên page đẹp quá, lấy {items} về {city} nhé. {name}",
        "Giao {items} đến {city} giúp mình.",
        "Mua {items} ship về {city} nha.",
        "Để dành cho {name} {items}, lát mình ghé lấy.",
        "Mình tên {name}, lấy {items}, mình tự qua cửa hàng lấy.",
        "Cho mình {items} nhé.",
    ),
    heldout=(
        "Mình ở {city}, tính rước {items} về nhà, cứ ghi tên {name} nha.",
        "Lên đơn giùm {name}: {items}, chuyển tới {city}.",
        "Bao giờ thì {items} về tới {city}? Ghi tên {name} giúp mình.",
        "Cứ gọi mình là {name}, mình kiếm {items}, nơi nhận là {city}.",
        "{name} cần {items}, nhờ shop chuyển phát đến {city} với ạ.",
        "Bạn gói {items} rồi gửi xe về {city} cho {name} nha.",
        "Chuyển {items} tới {city} dùm mình với.",
        "Giữ hàng giúp {name} với, {items}, chiều mình ra tiệm.",
    ),
)

BOOKINGS = Pool(
    train=(
        "Cho mình đặt bàn {people} {when} nhé, mình tên {name}.",
        "Mình là {name}, muốn đặt bàn {when} cho {people}.",
        "Đặt bàn {people}, {when}, tên {name}.",
        "Quán còn bàn {when} không ạ? Bên mình đi {people}, tên {name}.",
        "Giữ giúp mình một bàn {when}, {people}, người đặt {name}.",
        "Em ơi anh {name} đặt bàn {people} {when} nha.",
        "{name} đây, {when} cho mình bàn {people} nhé.",
        "{when} nhóm mình {people} qua ăn, đặt tên {name} nha.",
        "Chị muốn đặt chỗ {when} cho {people}, chị tên {name}.",
        "Nhà hàng cho em đặt bàn {people} {when} ạ, em là {name}.",
        "Mình muốn tổ chức sinh nhật {when}, khoảng {people}, liên hệ {name}.",
        "Xin bàn gần cửa sổ {when}, {people}, tên mình là {name}.",
        "Bên mình có {people}, {when} tới được không? {name}",
        "Đặt chỗ cho {name}: {people}, {when}.",
        "Anh tên {name}, {when} anh dẫn {people} tới ăn.",
        "Tên {name}, đi {people}, hẹn {when}.",
        "Giữ bàn cho {name} {when} nhé, {people}.",
        "Cho mình bàn {people} {when}.",
        "{when} còn chỗ cho {people} không shop?",
        "Mình cần đặt bàn {when}, đi {people} nha.",
    ),
    heldout=(
        "Tụi mình {people}, hẹn {when} ghé quán, cứ ghi tên {name} nha.",
        "Chừa cho {name} chỗ ngồi {people} {when} với.",
        "{when} xếp giùm mình chỗ cho {people}, gọi mình là {name}.",
        "Gia đình mình {people} tính ghé {when}, báo bàn tên {name} ạ.",
        "Nhờ quán sắp xếp {when} một bàn đủ chỗ cho {people}, {name} cảm ơn trước.",
        "Không biết {when} có nhận khách không, tụi em {people}, tên em {name}.",
        "Liệu {when} quán nhận nổi {people} không?",
        "{name} xin một bàn cho {people}, {when} mình ghé.",
    ),
)

COMPLAINTS = Pool(
    train=(
        "Mình mua {device} bên shop mà {problem}. {wish}. Mình tên {name}.",
        "Mình là {name}, {device} mình đặt {problem}. {wish}.",
        "Shop ơi {device} {problem}. {wish}. {name}",
        "Sao {device} {problem} vậy shop? {wish}, tên mình là {name}.",
        "{name} đây, {device} mới mua {problem}. {wish}.",
        "Em đặt {device} mà {problem}. {wish} ạ. Em tên {name}.",
        "Đơn của {name}: {device} {problem}. {wish}.",
        "Chán quá, {device} {problem}. {wish}. Người mua {name}.",
        "Anh tên {name}, cái {device} của anh {problem}. {wish}.",
        "Hàng gì kỳ vậy, {device} {problem}! {wish}. Mình là {name}.",
        "Chị {name} báo em là {device} {problem}. {wish}.",
        "Mình nhắn lần hai rồi, {device} {problem}. {wish}. {name}",
        "Mình không hài lòng, {device} {problem}. {wish}. Tên {name}.",
        "Cho {name} hỏi, {device} {problem} thì sao? {wish}.",
        "Em là {name}, em mới nhận {device} nhưng {problem}. {wish}.",
        "Cái {device} {problem}. {wish}.",
        "Shop làm ăn kiểu gì mà {device} {problem}? {wish}.",
        "Alo shop, {device} {problem}. {wish}.",
        "Mình tên {name}, {device} mình mua {problem}.",
        "{device} của mình {problem}. Tên {name}.",
    ),
    heldout=(
        "Thất vọng ghê, món {device} {problem}. {wish}. Cứ gọi mình là {name}.",
        "Báo lỗi đơn hàng: {device} {problem}. {wish}. Khách {name}.",
        "Vừa khui thùng ra thì thấy {device} {problem}. {wish}, {name} cảm ơn.",
        "Không hiểu sao {device} nhà mình {problem}. {wish}. Ghi tên {name} nha.",
        "Nhờ bạn xem giúp {name} với, {device} {problem}. {wish}.",
        "{name} phản ánh chút: {device} {problem}. {wish}.",
        "Tính ra {device} bên bạn {problem}. {wish}.",
        "Ủa bạn ơi, {device} {problem} kìa. {name}",
    ),
)

TEMPLATES = {"order": ORDERS, "booking": BOOKINGS, "complaint": COMPLAINTS}
