-- A small shop: 10,000 customers, 500 products, 100,000 orders over two years. The same rows every time.
create table customers (
    id bigint generated always as identity primary key,
    name text not null,
    country text not null,
    joined_on date not null
);

create table products (
    id bigint generated always as identity primary key,
    name text not null unique,
    price_cents bigint not null check (price_cents > 0)
);

create table orders (
    id bigint generated always as identity primary key,
    customer_id bigint not null references customers,
    product_id bigint not null references products,
    quantity integer not null check (quantity > 0),
    ordered_at timestamptz not null
);

insert into customers (name, country, joined_on)
select
    (array['Ada', 'Ben', 'Chen', 'Dora', 'Eko', 'Fay', 'Gus', 'Hana'])[1 + n % 8] || ' ' || n,
    (array['Austria', 'Brazil', 'Canada', 'Denmark', 'Egypt', 'France', 'Ghana'])[1 + (n * 7919 / 13) % 7],
    date '2024-01-01' + (n * 37) % 700
from generate_series(1, 10000) as n;

insert into products (name, price_cents)
select
    (array['lamp', 'chair', 'teapot', 'rug', 'clock'])[1 + n % 5] || ' no. ' || n,
    199 + (n * 7919) % 20000
from generate_series(1, 500) as n;

-- Products sell unevenly, as they do: the square root makes the ones with low numbers the rare ones.
insert into orders (customer_id, product_id, quantity, ordered_at)
select
    1 + (n * 7907::bigint) % 10000,
    500 - floor(sqrt((n * 104729::bigint) % 250000))::integer,
    1 + n % 4,
    timestamptz '2024-01-01 00:00+00' + (n * 631) * interval '1 second'
from generate_series(1, 100000) as n;

create index on orders (customer_id);
create index on orders (product_id);
analyze customers, products, orders;
