select
    c.country,
    count(*) as orders,
    (sum(o.quantity * p.price_cents) / 100)::bigint as revenue
from orders as o
join customers as c on c.id = o.customer_id
join products as p on p.id = o.product_id
group by c.country
order by revenue desc
limit 5
